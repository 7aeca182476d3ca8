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
