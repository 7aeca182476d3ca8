"""Stage `benchmark`: the questions of a benchmark, with what decides their answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.errors import UserError
from effllm.stages.files import expand_paths
from effllm.stages.stage import Parents, Stage
from effllm.study import Study
from effllm.study.code_tasks import HumanEvalBenchmark, ProblemFiles
from effllm.study.evaluation import HarnessBenchmark, HeldOutBenchmark
from effllm.study.math_tasks import HardMathBenchmark, ProblemFile, WebFile

if TYPE_CHECKING:
    from effllm.hub.address import Address
    from effllm.hub.repository import HubFile, Repository
    from effllm.stages.graph import Graph


class BenchmarkStage(Stage):
    """Nodes are the study's benchmarks."""

    name: ClassVar[str] = "benchmark"
    module: ClassVar[str] = "effllm.evaluation.benchmark"
    version: ClassVar[int] = 3
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.benchmarks)

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return {"benchmark": {key: value for key, value in study.benchmarks[id].plain().items() if key != "label"}}

    def parents(self, graph: "Graph", id: str) -> Parents:
        benchmark = graph.study.benchmarks[id]
        if isinstance(benchmark, HeldOutBenchmark):
            return {"corpus": graph.manifest("corpus", benchmark.corpus)}
        if isinstance(benchmark, HumanEvalBenchmark) and isinstance(benchmark.source, ProblemFiles):
            return {"files": expand_paths(f"benchmarks.{id}", benchmark.source.paths)}
        if isinstance(benchmark, HardMathBenchmark) and isinstance(benchmark.source, ProblemFile):
            return {"files": expand_paths(f"benchmarks.{id}", [benchmark.source.path])}
        return {}

    def hub_source(self, study: Study, id: str) -> HarnessBenchmark | None:
        benchmark = study.benchmarks[id]
        return benchmark if isinstance(benchmark, HarnessBenchmark) else None

    def address(self, study: Study, id: str) -> "Address | None":
        source = getattr(study.benchmarks[id], "source", None)
        if not isinstance(source, WebFile):
            return None
        from effllm.hub.address import Address

        return Address("benchmark.source", source.url, source.sha256)

    def hub_files(
        self, source: HarnessBenchmark, id: str, folder: Path
    ) -> "Iterator[tuple[Repository, list[HubFile]]]":
        from effllm.evaluation.harness_data import dataset_of, resolve

        for number, leaf in enumerate(resolve(source.task).leaves):
            dataset = dataset_of(leaf, source.revision, folder / str(number))
            try:
                yield dataset.repository, dataset.files(leaf.splits())
            except UserError as error:
                raise UserError(f"benchmark.task: {leaf.name!r}: {error}") from None
