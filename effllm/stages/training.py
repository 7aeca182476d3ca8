"""What pretraining and fine-tuning have in common: bytes of the training state, what a job asks for, their records."""

from typing import TYPE_CHECKING

from effllm.stages.cost import number_type
from effllm.stages.history import MeasuredWork, readable
from effllm.stages.request import MB, PROCESS_MB, WHOLE_NODES, Request, rounded
from effllm.training.settings import Parallel

if TYPE_CHECKING:
    from effllm.runtime.artifact import Artifact

# Of a checkpoint to resume from: float32 weights and AdamW's two moments. The Trainer keeps two and writes a third.
CHECKPOINT_B_PER_PARAMETER = 12
_CHECKPOINTS = 3
# Of what trains one parameter: the above, and its gradient.
_STATE_B_PER_PARAMETER = 16
# Half of what Hopper GPUs sustain in training, in FLOP/s: bfloat16, and float32 with TF32 products.
SUSTAINED_FLOPS = {"bfloat16": 200e12, "float32": 60e12}
# Warned this long before its time is over, a training run saves a checkpoint, from which the next attempt goes on.
_WARNING = "--signal=TERM@300"

# What says how a run is spread, and what it may have to change with it. Its figures are of one number of ranks.
RANKS = ("parallel", "micro_batch_size")


def training_state_b(trained: int, fixed: int, parallel: Parallel, dtype: str) -> float:
    """Bytes on one device of what does not depend on the batch; `trained` and `fixed` count parameters.

    Trained ones are float32 with a gradient and AdamW's two moments, fixed ones have the type of the arithmetic. What
    a strategy shards is divided by the ranks. bfloat16 is mixed precision: autocast keeps a 16-bit copy of the weights
    that it has multiplied by, of all of them where they are not sharded.
    """
    ranks = parallel.world_size
    weights_b, gradients_b, moments_b = 4.0 * trained, 4.0 * trained, 8.0 * trained
    fixed_b = float(fixed * number_type(dtype).itemsize)
    shards_weights = parallel.strategy in ("fsdp2", "zero3")
    if shards_weights:
        weights_b, fixed_b = weights_b / ranks, fixed_b / ranks
    if shards_weights or parallel.strategy == "zero2":
        gradients_b, moments_b = gradients_b / ranks, moments_b / ranks
    if parallel.offload:
        moments_b = 0.0
        if parallel.strategy == "zero3":
            weights_b = fixed_b = 0.0
    copies_b = 2.0 * trained if dtype == "bfloat16" and not shards_weights else 0.0
    return weights_b + gradients_b + moments_b + fixed_b + copies_b


def checkpoints_b(trained: int) -> float:
    """Bytes of the checkpoints of a run that trains so many parameters."""
    return float(_CHECKPOINTS * CHECKPOINT_B_PER_PARAMETER * trained)


def training_request(
    parallel: Parallel, dtype: str, parameters: float, flops: float, has_adapter: bool = False
) -> Request:
    """What a run of so many FLOPs over so many parameters asks for, whether it trains them or an adapter."""
    # Each rank makes the weights, fixed ones in the type of the arithmetic; the first one gathers what a checkpoint
    # holds, of an adapter the same for a sixth of the parameters at most.
    held_b = number_type(dtype).itemsize if has_adapter else 4
    kept_b = CHECKPOINT_B_PER_PARAMETER / 6 if has_adapter else CHECKPOINT_B_PER_PARAMETER
    memory_mb = parallel.devices * (PROCESS_MB + held_b * parameters / MB) + kept_b * parameters / MB
    if parallel.offload:
        memory_mb += _STATE_B_PER_PARAMETER * parameters / MB
    minutes = 60 + flops / (SUSTAINED_FLOPS[dtype] * parallel.world_size) / 60
    options = (_WARNING, WHOLE_NODES) if parallel.nodes > 1 else (_WARNING,)
    return rounded(minutes, memory_mb, nodes=parallel.nodes, gpus=parallel.devices, options=options)


def training_work(artifact: "Artifact") -> MeasuredWork:
    """What efficiency.json says of a run: steady steps times their number."""
    from effllm.results.training import Efficiency, FinetuningQuality

    efficiency = readable(Efficiency, artifact.directory)
    if efficiency is None:
        return MeasuredWork()
    devices, telemetry = efficiency.world_size, efficiency.telemetry
    per_step_s = efficiency.latency_s_per_iteration
    steps = artifact.manifest.spec["config"].get("max_steps")
    if steps is None and (quality := readable(FinetuningQuality, artifact.directory)):
        steps = quality.steps
    if per_step_s is None or steps is None:
        return MeasuredWork(telemetry, devices=devices)
    return MeasuredWork(telemetry, per_step_s * steps, devices, 1 - efficiency.resumed_at_step / steps)
