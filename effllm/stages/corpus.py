"""Stage `corpus`: documents of a source, drawn and split."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effllm.data.captions.settings import HubRowsWithCaptions
from effllm.data.images.settings import HubImageSource
from effllm.data.instructions.settings import HubInstructionSource
from effllm.data.settings import Corpus, FilesCorpusSource, HubCorpusSource
from effllm.stages.files import expand_paths
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.repository import HubFile, Repository
    from effllm.stages.graph import Graph

# Files that are fetched and read side by side: as many may be fetched in vain.
_READ_AT_ONCE = 4


class CorpusStage(Stage):
    """Nodes are the study's corpora."""

    name: ClassVar[str] = "corpus"
    module: ClassVar[str] = "effllm.data.corpus"
    version: ClassVar[int] = 2
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.corpora)

    def config(self, study: Study, id: str) -> Corpus:
        return study.corpora[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        source = graph.study.corpora[id].source
        return {"files": expand_paths(f"corpora.{id}", source.paths)} if isinstance(source, FilesCorpusSource) else {}

    def hub_source(self, study: Study, id: str) -> HubCorpusSource | None:
        source = study.corpora[id].source
        return source if isinstance(source, HubCorpusSource) else None

    def hub_files(self, source: HubCorpusSource, id: str, folder: Path) -> "Iterator[tuple[Repository, list[HubFile]]]":
        return dataset_files(source, folder)

    def is_limited(self, study: Study, id: str) -> bool:
        return self.hub_source(study, id) is not None and study.corpora[id].maximum_tokens is not None

    def fetch_limited(self, study: Study, id: str, folder: Path) -> "tuple[Repository, list[HubFile]] | None":
        from effllm.data.corpus import units_of_budget
        from effllm.data.sources.hub import CachedHubSource

        source = self.hub_source(study, id)
        if source is None or not self.is_limited(study, id):
            return None
        files = CachedHubSource(source.repo, source.name, source.split, source.revision, folder)
        return files.taken(units_of_budget(files, study.corpora[id], folder, _READ_AT_ONCE))


def dataset_files(
    source: HubCorpusSource | HubInstructionSource | HubImageSource | HubRowsWithCaptions, folder: Path
) -> "Iterator[tuple[Repository, list[HubFile]]]":
    """The files of one split of a dataset on the hub."""
    from effllm.hub.dataset import HubDataset

    dataset = HubDataset(source.repo, source.name, source.revision, folder)
    yield dataset.repository, dataset.files([source.split])
