"""Stage `overlap`: the items of a benchmark against the text that models of the study were trained on."""

from typing import TYPE_CHECKING, Any, ClassVar

from effllm.stages.request import PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import payload_bytes
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.stages.graph import Graph

# Text that one core takes apart, bytes of parquet per second.
_COMPARED_PER_S = 1e7


class OverlapStage(Stage):
    """Nodes are `benchmark.corpus`, for every corpus that a model under test was trained on."""

    name: ClassVar[str] = "overlap"
    module: ClassVar[str] = "effllm.evaluation.overlap"
    version: ClassVar[int] = 1

    def ids(self, study: Study) -> list[str]:
        corpora = dict.fromkeys(corpus for model in study.models if (corpus := study.corpus_behind(model)))
        return [f"{benchmark}.{corpus}" for benchmark in study.benchmarks for corpus in corpora]

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return {}

    def parents(self, graph: "Graph", id: str) -> Parents:
        benchmark, corpus = id.split(".", 1)
        return {"benchmark": graph.manifest("benchmark", benchmark), "corpus": graph.manifest("corpus", corpus)}

    def request(self, job: JobContext) -> Request:
        text_b = payload_bytes(job.artifact("corpus"), ".parquet")
        return rounded(30 + 2 * text_b / _COMPARED_PER_S / 60, PROCESS_MB)
