"""Columns that several tables have."""

from effllm.tables.description import Column

ENERGY_CONDITIONS = ("energy_source", "energy_scope")
MEMORY_CONDITIONS = ("AMU_scope",)

CONDITIONS = (
    Column("device", "condition"),
    Column("device_id", "condition", label="card"),
    Column("threads", "condition"),
    Column("software", "condition"),
)
STATUS = (
    Column("warnings", "status"),
    Column("status", "status"),
    Column("reason", "status"),
    Column("not_measured", "status"),
)
# What telemetry says of the measured windows, whatever ran in them.
WINDOW = (
    Column("AMU_scope", "condition", label="memory's scope"),
    Column("AMU_GB", "cost", "GB", "average memory", "lower", conditions=MEMORY_CONDITIONS),
    Column("memory_peak_GB", "cost", "GB", "peak memory", "lower", conditions=MEMORY_CONDITIONS),
    Column("AMU_fraction", "cost", label="share of memory", better="lower", conditions=MEMORY_CONDITIONS),
    Column("AEC_W", "cost", "W", "average power", "lower", conditions=ENERGY_CONDITIONS),
    Column("power_peak_w", "cost", "W", "peak power", "lower", conditions=ENERGY_CONDITIONS),
    Column("util_nvml", "condition", label="share of time with a kernel"),
    Column("util_cpu", "condition", label="share of CPU time"),
    Column("energy_source", "condition"),
    Column("energy_scope", "condition"),
)
# A training's steps, pretraining and fine-tuning alike.
TRAINING = (
    *WINDOW,
    Column("AL_s_per_iter", "cost", "s", "time of a step", "lower", interval=("AL_low", "AL_high")),
    Column("tokens_per_s", "cost", "tokens/s", "throughput", "higher"),
    Column("mfu", "cost", label="model FLOPs utilisation", better="higher"),
    Column("host_memory_peak_GB", "cost", "GB", "peak memory of the host", "lower"),
    Column("GPU_hours", "cost", "h", "GPU hours", "lower"),
    Column("training_hours", "cost", "h", "training time", "lower"),
    Column("micro_batch", "setting"),
    Column("context", "setting"),
    Column("parameters_total", "cost", label="parameters", better="lower"),
    Column("parallel", "setting"),
    Column("dtype", "setting"),
    Column("activation_checkpointing", "setting"),
    Column("deterministic", "setting"),
    *CONDITIONS,
    Column("world_size", "condition"),
    Column("steps_measured", "condition"),
    Column("seconds_measured", "condition"),
    *STATUS,
)
# A fine-tuning's steps, of text, images or videos.
TUNING_STEPS = (
    *TRAINING,
    Column("PCU", "condition", label="share of time with a kernel"),
    Column("ST_samples_per_param_s", "cost", "samples/(parameter s)", "throughput per parameter", "higher"),
    Column("AL_s_per_sample", "cost", "s", "time of a sample", "lower"),
    Column("energy_J_per_sample", "cost", "J", "energy per sample", "lower", conditions=ENERGY_CONDITIONS),
    Column("parameters_trainable", "cost", label="trained parameters", better="lower"),
    Column("adapter_rank", "setting"),
    Column("parameters_matched", "condition"),
    Column("adapter_bytes", "cost", "bytes", "size of the adapter", "lower"),
    Column("held_out_loss_before", "condition"),
    Column("samples_per_step", "setting"),
    Column("steps", "setting"),
    Column("samples_seen", "setting"),
    Column("run", "condition"),
    Column("seed", "condition"),
    Column("learning_rate", "setting"),
)
TRAINING_SCOPE = (
    "device",
    "device_id",
    "energy_source",
    "energy_scope",
    "AMU_scope",
    "threads",
    "world_size",
    "software",
)


def tuning_losses(unit: str, conditions: tuple[str, ...]) -> tuple[Column, ...]:
    """The losses of a fine-tuning, which compare where `conditions` are equal."""
    bounds = ("held_out_loss_low", "held_out_loss_high")
    return (
        Column("loss", "quality", unit, "training loss", "lower", conditions=conditions),
        Column("held_out_loss", "quality", unit, "held-out loss", "lower", interval=bounds, conditions=conditions),
        Column("loss_last", "quality", unit, "last training loss", "lower", conditions=conditions),
    )
