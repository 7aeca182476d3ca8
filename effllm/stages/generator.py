"""Stage `generator`: a pipeline that draws images or videos from text."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.sources import HubModelSource, LocalModelSource
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.repository import HubFile, Repository
    from effllm.stages.graph import Graph


class GeneratorStage(Stage):
    """Nodes are the study's pipelines."""

    name: ClassVar[str] = "generator"
    module: ClassVar[str] = "effllm.models.generators.import_generator"
    version: ClassVar[int] = 2
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.generators)

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return study.generators[id].spec()

    def parents(self, graph: "Graph", id: str) -> Parents:
        source = graph.study.generators[id].source
        if not isinstance(source, LocalModelSource):
            return {}
        from effllm.models.generators.import_generator import local_files

        return {"files": [str(path) for path in local_files(Path(source.path), f"generators.{id}.source.path")]}

    def hub_source(self, study: Study, id: str) -> HubModelSource | None:
        source = study.generators[id].source
        return source if isinstance(source, HubModelSource) else None

    def hub_files(self, source: HubModelSource, id: str, folder: Path) -> "Iterator[tuple[Repository, list[HubFile]]]":
        from effllm.hub.repository import Repository
        from effllm.models.generators.import_generator import needed_files

        repository = Repository("model", source.repo, source.revision)
        yield repository, needed_files(repository)
