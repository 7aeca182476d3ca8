"""Stage `autoencoder`: an autoencoder of images that the study does not train."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effllm.models.sources import HubModelSource, LocalModelSource
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.repository import HubFile, Repository
    from effllm.stages.graph import Graph


class AutoencoderStage(Stage):
    """Nodes are the study's autoencoders."""

    name: ClassVar[str] = "autoencoder"
    module: ClassVar[str] = "effllm.models.import_autoencoder"
    version: ClassVar[int] = 1
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.autoencoders)

    def config(self, study: Study, id: str) -> HubModelSource | LocalModelSource:
        return study.autoencoders[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        source = graph.study.autoencoders[id]
        if not isinstance(source, LocalModelSource):
            return {}
        from effllm.models.import_autoencoder import local_files

        return {"files": [str(path) for path in local_files(Path(source.path), f"autoencoders.{id}.path")]}

    def hub_source(self, study: Study, id: str) -> HubModelSource | None:
        source = study.autoencoders[id]
        return source if isinstance(source, HubModelSource) else None

    def hub_files(self, source: HubModelSource, id: str, folder: Path) -> "Iterator[tuple[Repository, list[HubFile]]]":
        from effllm.hub.repository import Repository
        from effllm.models.import_autoencoder import needed_files

        repository = Repository("model", source.repo, source.revision)
        yield repository, needed_files(repository)
