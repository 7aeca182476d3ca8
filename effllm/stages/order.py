"""Stage `order`: how hard each window of a token stream is, by which training orders them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.data.order.settings import DocumentMeasure, LossMeasure, Order
from effllm.models.costs import forward_flops, parameter_count
from effllm.models.costs.shapes import shape_of
from effllm.stages.cost import ON_THE_CPU, Cost, NodeContext, with_model
from effllm.stages.request import MB, PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.training import SUSTAINED_FLOPS
from effllm.stages.weights import payload_bytes, vocabulary_of
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.stages.graph import Graph

# Text that one core measures by the slowest measure, bytes per second.
_MEASURED_PER_S = 1e6
# Arrays of a number for each document that are in memory together, with a margin.
_ARRAYS = 8
_LOADED_B_PER_PARAMETER = 4
_LARGE = "the number of windows is known once the tokens are built"


class OrderStage(Stage):
    """Nodes are the study's orders."""

    name: ClassVar[str] = "order"
    module: ClassVar[str] = "effllm.data.order.build"
    version: ClassVar[int] = 1
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.orders)

    def config(self, study: Study, id: str) -> Order:
        return study.orders[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        order = graph.study.orders[id]
        parents = {"tokens": graph.manifest("tokens", order.tokens)}
        if isinstance(order.by, LossMeasure):
            return parents | {"model": graph.manifest("pretrain", order.by.run)}
        if isinstance(order.by, DocumentMeasure):
            return parents | {"corpus": graph.manifest("corpus", graph.study.encoded(order.tokens).corpus)}
        return parents

    def request(self, job: JobContext) -> Request:
        order = job.study.orders[job.id]
        tokens = job.artifact("tokens")
        boundaries_mb = payload_bytes(tokens, "boundaries.bin") / MB
        if not isinstance(order.by, LossMeasure):
            text_b = payload_bytes(job.artifact("corpus"), ".parquet") if "corpus" in job.inputs else 0
            minutes = 30 + 3 * text_b / (_MEASURED_PER_S * job.cores) / 60
            return rounded(minutes, 2 * PROCESS_MB + _ARRAYS * boundaries_mb, gpus=1)
        run = job.study.pretraining[order.by.run]
        shape = shape_of(run.architecture, vocabulary_of(job.study, order.tokens))
        # Ids are of two bytes at least.
        windows = payload_bytes(tokens, "train.bin") / 2 / order.sequence_length
        minutes = 60 + windows * forward_flops(shape, order.sequence_length) / SUSTAINED_FLOPS["float32"] / 60
        memory_mb = PROCESS_MB + _LOADED_B_PER_PARAMETER * parameter_count(shape).total / MB
        return rounded(minutes, memory_mb, gpus=1)

    def cost(self, node: NodeContext) -> Cost:
        by = node.config["by"]["kind"]
        missing = {"disk_b": _LARGE, "scratch_b": _LARGE}
        if by != "loss":
            return Cost(1, f"order by {by}: {node.id}", reasons=missing | {"memory_b": ON_THE_CPU})
        return with_model(Cost(1, f"order by {by}: {node.id}"), node, lambda shape: _cost_of_model(shape, missing))


def _cost_of_model(shape: "Shape", missing: Mapping[str, str]) -> Mapping[str, Any]:
    weights_b = float(_LOADED_B_PER_PARAMETER * parameter_count(shape).total)
    why = "no formula counts the activations of reading"
    return {"memory_least_b": weights_b, "reasons": {**missing, "memory_b": why}}
