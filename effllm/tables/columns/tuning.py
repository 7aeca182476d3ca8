"""The columns of Table 13."""

from effllm.tables.columns.shared import TRAINING_SCOPE, TUNING_STEPS, tuning_losses
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
        *tuning_losses("", _SAME_DATA),
        *TUNING_STEPS,
        Column("captions", "condition"),
    ),
)
