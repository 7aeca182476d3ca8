"""Stage `tokens`: a corpus in the ids of a tokenizer, packed, or random ids."""

from typing import TYPE_CHECKING, ClassVar

from effllm.data.settings import SyntheticStream, TokenStream
from effllm.stages.request import PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import payload_bytes
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.stages.graph import Graph

# Text that one core tokenizes, bytes per second.
_TOKENIZED_PER_S = 1e6


class TokensStage(Stage):
    """Nodes are the study's token streams."""

    name: ClassVar[str] = "tokens"
    module: ClassVar[str] = "effllm.data.packing"
    version: ClassVar[int] = 1

    def ids(self, study: Study) -> list[str]:
        return list(study.tokens)

    def config(self, study: Study, id: str) -> TokenStream:
        return study.tokens[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        stream = graph.study.tokens[id]
        if isinstance(stream, SyntheticStream):
            return {}
        return {
            "corpus": graph.manifest("corpus", stream.corpus),
            "tokenizer": graph.manifest("tokenizer", stream.tokenizer),
        }

    def request(self, job: JobContext) -> Request:
        text_b = payload_bytes(job.artifact("corpus"), ".parquet") if "corpus" in job.inputs else 0
        return rounded(30 + 3 * text_b / (_TOKENIZED_PER_S * job.cores) / 60, 2 * PROCESS_MB)
