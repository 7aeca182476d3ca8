"""The columns of Tables 7 and 8."""

from effllm.tables.columns.shared import ENERGY_CONDITIONS, TRAINING, TRAINING_SCOPE
from effllm.tables.description import Column, Description

# Tokens of an answer are those of the model's own tokenizer: losses compare between methods of one model only.
_ANSWERS = ("model",)

FINETUNING = Description(
    title="fine-tuning methods",
    names=("model", "method"),
    subject="model",
    signature=("held_out_loss", "parameters_trainable", "packing"),
    quality="held_out_loss",
    costs=("AL_s_per_iter", "memory_peak_GB", "energy_J_per_sample"),
    scope=("model", "context", "packing", "samples_per_step", "samples_seen", *TRAINING_SCOPE),
    declared=(
        Column("model", "name"),
        Column("method", "name"),
        Column("loss", "quality", "nats/token", "training loss", "lower", conditions=_ANSWERS),
        Column(
            "held_out_loss", "quality", "nats/token", "held-out loss", "lower",
            interval=("held_out_loss_low", "held_out_loss_high"), conditions=_ANSWERS,
        ),
        Column("loss_last", "quality", "nats/token", "last training loss", "lower", conditions=_ANSWERS),
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
        Column("packing", "setting"),
        Column("steps", "setting"),
        Column("samples_seen", "setting"),
        Column("run", "condition"),
        Column("seed", "condition"),
        Column("learning_rate", "setting"),
    ),
)  # fmt: skip
