"""The columns of Table 12: those of fine-tuning, and what the images are worth."""

from dataclasses import replace

from effllm.tables.columns.finetuning import FINETUNING
from effllm.tables.description import Column

_PACKING = "packing"

VISION_LANGUAGE = replace(
    FINETUNING,
    title="fine-tuning methods, text and images",
    signature=("held_out_loss", "parameters_trainable", "image_gain"),
    scope=tuple(name for name in FINETUNING.scope if name != _PACKING),
    declared=(
        *(column for column in FINETUNING.declared if column.name != _PACKING),
        Column("held_out_loss_blank", "condition", "nats/token"),
        Column("image_gain", "condition", "nats/token", interval=("image_gain_low", "image_gain_high")),
        Column("looks", "condition"),
        Column("vision_trained", "setting"),
        Column("image_tokens_per_sample", "condition"),
        Column("samples_train", "condition"),
        Column("samples_held_out", "condition"),
        Column("samples_dropped", "condition"),
    ),
)
