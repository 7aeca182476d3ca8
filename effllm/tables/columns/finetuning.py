"""The columns of Tables 7 and 8."""

from effllm.tables.columns.shared import TRAINING_SCOPE, TUNING_STEPS, tuning_losses
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
        *tuning_losses("nats/token", _ANSWERS),
        *TUNING_STEPS,
        Column("packing", "setting"),
    ),
)
