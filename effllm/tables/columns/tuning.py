"""The columns of Table 13."""

from effllm.tables.columns.shared import ENERGY_CONDITIONS, TRAINING, TRAINING_SCOPE
from effllm.tables.description import Column, Description

# Latents are those of the model's own autoencoder: losses compare between methods on one model and one set alone.
_SAME_DATA = ("model", "captions")

TUNING = Description(
    title="fine-tuning methods for images and videos",
    names=("model", "method"),
    subject="model",
    signature=("held_out_loss", "captions"),
    quality="held_out_loss",
    costs=("AL_s_per_iter", "memory_peak_GB", "energy_J_per_sample"),
    scope=("model", "captions", "samples_per_step", "samples_seen", *TRAINING_SCOPE),
    declared=(
        Column("model", "name"),
        Column("method", "name"),
        Column("loss", "quality", "", "training loss", "lower", conditions=_SAME_DATA),
        Column(
            "held_out_loss", "quality", "", "held-out loss", "lower",
            interval=("held_out_loss_low", "held_out_loss_high"), conditions=_SAME_DATA,
        ),
        Column("loss_last", "quality", "", "last training loss", "lower", conditions=_SAME_DATA),
        *TRAINING,
        Column("PCU", "condition", label="share of time with a kernel"),
        Column("ST_samples_per_param_s", "cost", "samples/(parameter s)", "throughput per parameter", "higher"),
        Column("AL_s_per_sample", "cost", "s", "time of a sample", "lower"),
        Column("energy_J_per_sample", "cost", "J", "energy per sample", "lower", conditions=ENERGY_CONDITIONS),
        Column("adapter_rank", "setting"),
        Column("parameters_matched", "condition"),
        Column("parameters_trainable", "cost", label="trained parameters", better="lower"),
        Column("adapter_bytes", "cost", "bytes", "size of the adapter", "lower"),
        Column("held_out_loss_before", "condition"),
        Column("captions", "condition"),
        Column("samples_per_step", "setting"),
        Column("steps", "setting"),
        Column("samples_seen", "setting"),
        Column("run", "condition"),
        Column("seed", "condition"),
        Column("learning_rate", "setting"),
    ),
)  # fmt: skip
