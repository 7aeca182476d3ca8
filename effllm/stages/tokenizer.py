"""Stage `tokenizer`: a tokenizer that is trained on a corpus, or one of the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.data.settings import HubTokenizer, TrainedTokenizer
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.repository import HubFile, Repository
    from effllm.stages.graph import Graph


class TokenizerStage(Stage):
    """Nodes are the study's tokenizers."""

    name: ClassVar[str] = "tokenizer"
    module: ClassVar[str] = "effllm.data.tokenizer"
    version: ClassVar[int] = 1
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.tokenizers)

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return {"tokenizer": study.tokenizers[id].plain()}

    def parents(self, graph: "Graph", id: str) -> Parents:
        tokenizer = graph.study.tokenizers[id]
        return {"corpus": graph.manifest("corpus", tokenizer.corpus)} if isinstance(tokenizer, TrainedTokenizer) else {}

    def hub_source(self, study: Study, id: str) -> HubTokenizer | None:
        tokenizer = study.tokenizers[id]
        return tokenizer if isinstance(tokenizer, HubTokenizer) else None

    def hub_files(self, source: HubTokenizer, id: str, folder: Path) -> "Iterator[tuple[Repository, list[HubFile]]]":
        from effllm.data.tokenizer import tokenizer_files
        from effllm.hub.repository import Repository

        repository = Repository("model", source.repo, source.revision)
        yield repository, tokenizer_files(repository)
