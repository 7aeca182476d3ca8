"""Stage `model`: a model that the study does not train, from the hub, a local directory, or of random weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effllm.models.checkpoint.check import check_directory
from effllm.models.checkpoint.files import model_files
from effllm.models.sources import HubModelSource, LocalModelSource, RandomSource
from effllm.stages.cost import Cost, NodeContext, with_model
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import stored_b
from effllm.study import Study
from effllm.study.models import FinetunedSource, ModelSource, PretrainedSource

if TYPE_CHECKING:
    from effllm.hub.repository import HubFile, Repository
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph


class ModelStage(Stage):
    """Nodes are the study's models that are imported or made of random weights."""

    name: ClassVar[str] = "model"
    module: ClassVar[str] = "effllm.models.import_model"
    version: ClassVar[int] = 2
    network: ClassVar[bool] = True
    makes_model: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        trained = (PretrainedSource, FinetunedSource)
        return [id for id, model in study.models.items() if not isinstance(model.source, trained)]

    def config(self, study: Study, id: str) -> ModelSource:
        return study.models[id].source

    def parents(self, graph: "Graph", id: str) -> Parents:
        source = graph.study.models[id].source
        if isinstance(source, RandomSource) and source.tokenizer is not None:
            return {"tokenizer": graph.manifest("tokenizer", source.tokenizer)}
        if not isinstance(source, LocalModelSource):
            return {}
        return {"files": [str(path) for path in model_files(Path(source.path), f"models.{id}.source.path")]}

    def check_files(self, graph: "Graph", id: str) -> None:
        super().check_files(graph, id)
        source = graph.study.models[id].source
        if isinstance(source, LocalModelSource):
            check_directory(Path(source.path), f"models.{id}.source.path")

    def cost(self, node: NodeContext) -> Cost:
        return with_model(Cost(0, node.id), node, stored_b)

    def parameters(self, artifact: "Artifact") -> float:
        # Studies that import no model do without the types of its record.
        from effllm.results.model import ModelSummary

        # A failed cell holds no model.
        is_model = artifact.manifest.status == "ok"
        return sum(ModelSummary.read(artifact.directory).model.weights.values()) if is_model else 0

    def hub_source(self, study: Study, id: str) -> HubModelSource | None:
        source = study.models[id].source
        return source if isinstance(source, HubModelSource) else None

    def hub_files(self, source: HubModelSource, id: str, folder: Path) -> "Iterator[tuple[Repository, list[HubFile]]]":
        from effllm.hub.repository import Repository
        from effllm.models.import_model import needed_files

        repository = Repository("model", source.repo, source.revision)
        yield repository, needed_files(repository, folder, f"models.{id}")
