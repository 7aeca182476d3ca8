"""Stage `diffuse`: a diffusion transformer trained from random weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.dit.costs import activation_bytes, parameter_count, training_flops
from effllm.stages.cost import Cost, NodeContext, number_type
from effllm.stages.history import MeasuredWork
from effllm.stages.request import JobContext, Request
from effllm.stages.stage import Parents, Stage
from effllm.stages.training import RANKS, checkpoints_b, training_request, training_state_b, training_work
from effllm.study import Study
from effllm.training.diffusion_settings import DiffusionRun

if TYPE_CHECKING:
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph

# What is trained is saved in float32, and so is the moving average, which is kept on the device too.
_STORED_B_PER_PARAMETER = 4


class DiffuseStage(Stage):
    """Nodes are the study's runs of diffusion."""

    name: ClassVar[str] = "diffuse"
    module: ClassVar[str] = "effllm.training.diffuse"
    version: ClassVar[int] = 2
    uses_device: ClassVar[bool] = True
    kept_to: ClassVar[tuple[str, ...]] = RANKS

    def ids(self, study: Study) -> list[str]:
        return list(study.diffusion)

    def config(self, study: Study, id: str) -> DiffusionRun:
        return study.diffusion[id]

    def parents(self, graph: "Graph", id: str) -> Parents:
        learned = graph.study.diffusion[id].images
        kind = "latents" if learned in graph.study.latents else "images"
        return {kind: graph.manifest(kind, learned)}

    def is_measured(self, is_in_table: bool) -> bool:
        return is_in_table

    def devices(self, config: Mapping[str, Any]) -> int:
        return int(config["parallel"]["devices"])

    def request(self, job: JobContext) -> Request:
        run = job.study.diffusion[job.id]
        return training_request(run.parallel, run.dtype, parameter_count(run.architecture.shape()).total, _flops(run))

    def cost(self, node: NodeContext) -> Cost:
        run = DiffusionRun.model_validate(dict(node.config))
        shape, dtype = run.architecture.shape(), number_type(run.dtype)
        parameters, flops = parameter_count(shape).total, float(_flops(run))
        average_b = _STORED_B_PER_PARAMETER * parameters if run.ema is not None else 0
        images = node.config_of("images")
        keeps_model = images is None or images["source"]["kind"] != "noise"
        shards = run.parallel.world_size if run.parallel.strategy == "fsdp2" else 1
        kept_b = activation_bytes(shape, run.micro_batch_size, dtype, run.activation_checkpointing)
        return Cost(
            run.parallel.world_size,
            f"{run.dtype} diffusion",
            work=flops,
            flops=flops,
            memory_b=training_state_b(parameters, 0, run.parallel, run.dtype) + average_b / shards + kept_b,
            disk_b=float(_STORED_B_PER_PARAMETER * parameters) if keeps_model else 0.0,
            scratch_b=checkpoints_b(parameters) + 3.0 * average_b,
        )

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        return training_work(artifact)


def _flops(run: DiffusionRun) -> int:
    return run.max_steps * run.global_batch_size * training_flops(run.architecture.shape())
