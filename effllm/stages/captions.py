"""Stage `captions`: images or clips with captions, in a few shapes and split."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effllm.data.captions.settings import Captions, FilesWithCaptions, HubFilesWithCaptions, HubSource
from effllm.stages.corpus import dataset_files
from effllm.stages.files import expand_paths
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.repository import HubFile, Repository
    from effllm.stages.graph import Graph


class CaptionsStage(Stage):
    """Nodes are the study's captioned images and clips."""

    name: ClassVar[str] = "captions"
    module: ClassVar[str] = "effllm.data.captions.prepare"
    version: ClassVar[int] = 3
    # With the other data, on the host that sees them.
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.captions)

    def config(self, study: Study, id: str) -> Captions:
        return study.captions[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        source = graph.study.captions[id].source
        if not isinstance(source, FilesWithCaptions):
            return {}
        return {"files": expand_paths(f"captions.{id}", source.paths, such="**/*")}

    def hub_source(self, study: Study, id: str) -> HubSource | None:
        source = study.captions[id].source
        return source if isinstance(source, HubSource) else None

    def hub_files(self, source: HubSource, id: str, folder: Path) -> "Iterator[tuple[Repository, list[HubFile]]]":
        if not isinstance(source, HubFilesWithCaptions):
            yield from dataset_files(source, folder)
            return
        from effllm.data.captions.hub import needed_files
        from effllm.hub.repository import Repository

        repository = Repository("dataset", source.repo, source.revision)
        yield repository, needed_files(repository, source.paths)
