"""Stage `sparsity`: how many weights of a model in one precision are zero. Becomes effllm/stages/sparsity.py."""

from typing import TYPE_CHECKING, ClassVar

from effllm.models.costs import parameter_count
from effllm.stages.cost import Cost, NodeContext, with_model
from effllm.stages.request import MB, PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.stages.graph import Graph


class SparsityStage(Stage):
    """Nodes are `model.precision`."""

    name: ClassVar[str] = "sparsity"
    module: ClassVar[str] = "effllm.quantization.count_zeros"
    version: ClassVar[int] = 1
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return [f"{model}.{precision}" for model in study.models for precision in study.precisions]

    def config(self, study: Study, id: str) -> dict[str, float]:
        return {"threshold": 0.0}

    def parents(self, graph: "Graph", id: str) -> Parents:
        return {"model": graph.manifest("quantize", id)}

    def request(self, job: JobContext) -> Request:
        weights = job.weights()
        return rounded(10 + weights.gb_16_bit, PROCESS_MB + weights.bytes / MB, gpus=1)

    def cost(self, node: NodeContext) -> Cost:
        return with_model(Cost(1, "sparsity"), node, lambda shape: {"work": float(parameter_count(shape).total)})
