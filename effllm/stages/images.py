"""Stage `images`: images of one size, drawn and split."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effllm.data.images.settings import FilesImageSource, HubImageSource, Images
from effllm.stages.corpus import dataset_files
from effllm.stages.files import expand_paths
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.repository import HubFile, Repository
    from effllm.stages.graph import Graph


class ImagesStage(Stage):
    """Nodes are the study's images."""

    name: ClassVar[str] = "images"
    module: ClassVar[str] = "effllm.data.images.prepare"
    version: ClassVar[int] = 1
    # With the other data, on the host that sees them.
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.images)

    def config(self, study: Study, id: str) -> Images:
        return study.images[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        source = graph.study.images[id].source
        return {"files": expand_paths(f"images.{id}", source.paths)} if isinstance(source, FilesImageSource) else {}

    def hub_source(self, study: Study, id: str) -> HubImageSource | None:
        source = study.images[id].source
        return source if isinstance(source, HubImageSource) else None

    def hub_files(self, source: HubImageSource, id: str, folder: Path) -> "Iterator[tuple[Repository, list[HubFile]]]":
        return dataset_files(source, folder)
