"""Stage `features`: a network that gives features of images."""

from typing import TYPE_CHECKING, ClassVar

from effllm.fidelity.settings import FeatureNetwork, InceptionFeatures, TrainedFeatures
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.address import Address
    from effllm.stages.graph import Graph


class FeaturesStage(Stage):
    """Nodes are the study's networks."""

    name: ClassVar[str] = "features"
    module: ClassVar[str] = "effllm.fidelity.train_features"
    version: ClassVar[int] = 1
    # Weights of published ones are fetched; training takes seconds.
    network: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.features)

    def config(self, study: Study, id: str) -> FeatureNetwork:
        return study.features[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        settings = graph.study.features[id]
        return {"images": graph.manifest("images", settings.images)} if isinstance(settings, TrainedFeatures) else {}

    def address(self, study: Study, id: str) -> "Address | None":
        settings = study.features[id]
        if not isinstance(settings, InceptionFeatures):
            return None
        from effllm.hub.address import Address

        return Address("features.url", settings.url, settings.sha256)
