"""Stage `pretrain`: a model trained from random weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.data.settings import SyntheticStream
from effllm.models.costs import activation_bytes, parameter_count, training_flops
from effllm.models.costs.shapes import shape_of
from effllm.stages.cost import Cost, NodeContext, number_type, with_model
from effllm.stages.history import MeasuredWork
from effllm.stages.request import JobContext, Request
from effllm.stages.stage import Parents, Stage
from effllm.stages.training import RANKS, checkpoints_b, training_request, training_state_b, training_work
from effllm.stages.weights import checkpoint_bytes, vocabulary_of
from effllm.study import Study
from effllm.training.settings import PretrainingRun

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph

# What is trained is saved in float32.
_STORED_B_PER_PARAMETER = 4


class PretrainStage(Stage):
    """Nodes are the study's pretraining runs."""

    name: ClassVar[str] = "pretrain"
    module: ClassVar[str] = "effllm.training.pretrain"
    version: ClassVar[int] = 4
    uses_device: ClassVar[bool] = True
    makes_model: ClassVar[bool] = True
    kept_to: ClassVar[tuple[str, ...]] = RANKS

    def ids(self, study: Study) -> list[str]:
        return list(study.pretraining)

    def config(self, study: Study, id: str) -> PretrainingRun:
        return study.pretraining[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        tokens = graph.study.pretraining[id].tokens
        stream = graph.study.tokens[tokens]
        parents = {"tokens": graph.manifest("tokens", tokens)}
        if (order := graph.study.pretraining[id].order) is not None:
            parents["order"] = graph.manifest("order", order.by)
        if isinstance(stream, SyntheticStream):
            return parents
        return parents | {"tokenizer": graph.manifest("tokenizer", stream.tokenizer)}

    def is_measured(self, is_in_table: bool) -> bool:
        return is_in_table

    def devices(self, config: Mapping[str, Any]) -> int:
        return int(config["parallel"]["devices"])

    def request(self, job: JobContext) -> Request:
        run = job.study.pretraining[job.id]
        shape = shape_of(run.architecture, vocabulary_of(job.study, run.tokens))
        return training_request(run.parallel, run.dtype, parameter_count(shape).total, _flops(run, shape))

    def cost(self, node: NodeContext) -> Cost:
        run = PretrainingRun.model_validate(dict(node.config))
        base = Cost(run.parallel.world_size, f"{run.dtype} training")
        return with_model(base, node, lambda shape: _cost_of_model(run, shape))

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        return training_work(artifact)

    def parameters(self, artifact: "Artifact") -> float:
        return checkpoint_bytes(artifact) / _STORED_B_PER_PARAMETER


def _flops(run: PretrainingRun, shape: Any) -> int:
    return run.max_steps * run.global_batch_size * training_flops(shape, run.sequence_length)


def _cost_of_model(run: PretrainingRun, shape: "Shape") -> Mapping[str, Any]:
    parameters, flops = parameter_count(shape).total, _flops(run, shape)
    kept_b = activation_bytes(
        shape, run.micro_batch_size, run.sequence_length, number_type(run.dtype), run.activation_checkpointing
    )
    return {
        "work": flops,
        "flops": flops,
        "memory_b": training_state_b(parameters, 0, run.parallel, run.dtype) + kept_b,
        "disk_b": float(_STORED_B_PER_PARAMETER * parameters),
        "scratch_b": checkpoints_b(parameters),
    }
