"""Stage `instructions`: conversations for fine-tuning, or random tokens in their place."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effllm.data.instructions.settings import FilesInstructionSource, HubInstructionSource, Instructions
from effllm.stages.corpus import dataset_files
from effllm.stages.files import expand_paths
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.repository import HubFile, Repository
    from effllm.stages.graph import Graph


class InstructionsStage(Stage):
    """Nodes are the study's instruction data."""

    name: ClassVar[str] = "instructions"
    module: ClassVar[str] = "effllm.data.instructions.prepare"
    version: ClassVar[int] = 3
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.instructions)

    def config(self, study: Study, id: str) -> Instructions:
        return study.instructions[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        source = graph.study.instructions[id].source
        if not isinstance(source, FilesInstructionSource):
            return {}
        files = {"files": expand_paths(f"instructions.{id}", source.paths)}
        if source.images:
            files["images"] = expand_paths(f"instructions.{id}", source.images, "images")
        return files

    def hub_source(self, study: Study, id: str) -> HubInstructionSource | None:
        source = study.instructions[id].source
        return source if isinstance(source, HubInstructionSource) else None

    def hub_files(
        self, source: HubInstructionSource, id: str, folder: Path
    ) -> "Iterator[tuple[Repository, list[HubFile]]]":
        return dataset_files(source, folder)
