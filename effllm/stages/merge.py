"""Stage `merge`: a base model with the adapter of a fine-tuning run merged into it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.costs import parameter_count
from effllm.stages.cost import ON_THE_CPU, Cost, NodeContext, with_model
from effllm.stages.request import MB, PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import parameters_by_dtype, stored_b
from effllm.study import Study
from effllm.study.models import FinetunedSource

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph


class MergeStage(Stage):
    """Nodes are the fine-tuning runs with an adapter whose models are under test."""

    name: ClassVar[str] = "merge"
    module: ClassVar[str] = "effllm.training.merge"
    version: ClassVar[int] = 2
    uses_device: ClassVar[bool] = True
    makes_model: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        sources = (model.source for model in study.models.values())
        adapters = (s for s in sources if isinstance(s, FinetunedSource) and study.makes_adapter(s))
        return list(dict.fromkeys(source.node for source in adapters))

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return {}

    def parents(self, graph: "Graph", id: str) -> Parents:
        model, _, _ = id.rsplit(".", 2)
        return {"model": graph.weights(model), "adapter": graph.manifest("finetune", id)}

    def request(self, job: JobContext) -> Request:
        weights = job.weights()
        return rounded(30 + weights.gb_16_bit, PROCESS_MB + 3 * weights.bytes / MB, gpus=1)

    def cost(self, node: NodeContext) -> Cost:
        return with_model(Cost(1, "merge"), node, _cost_of_model)

    def parameters(self, artifact: "Artifact") -> float:
        return parameters_by_dtype(artifact)


def _cost_of_model(shape: "Shape") -> Mapping[str, Any]:
    stored = stored_b(shape)
    reasons = {"memory_b": ON_THE_CPU, "scratch_b": "not measured"} | stored.get("reasons", {})
    return {"work": float(parameter_count(shape).total), **stored, "reasons": reasons}
