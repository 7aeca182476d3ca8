"""The columns of Tables 10 and 11."""

from effllm.tables.columns.shared import ENERGY_CONDITIONS, TRAINING, TRAINING_SCOPE
from effllm.tables.description import Column, Description

# Losses compare where the same draws of the same images were scored.
_IMAGES = ("objective", "held_out_images")

DIFFUSION = Description(
    title="diffusion transformers",
    names=("model", "method"),
    subject="model",
    signature=("FID", "images_per_s"),
    quality="held_out_loss",
    costs=("AL_s_per_iter", "memory_peak_GB", "energy_J_per_image"),
    scope=("tokens_per_image", "objective", "global_batch", "images_seen", "held_out_images", *TRAINING_SCOPE),
    declared=(
        Column("model", "name"),
        Column("method", "name"),
        Column("FID", "quality", label="Frechet distance", better="lower"),
        Column(
            "held_out_loss", "quality", label="held-out loss", better="lower",
            interval=("held_out_loss_low", "held_out_loss_high"), conditions=_IMAGES,
        ),
        Column("held_out_loss_seeds_low", "bound"),
        Column("held_out_loss_seeds_high", "bound"),
        *(column for column in TRAINING if column.name != "context"),
        Column("TT_tokens_per_param_s", "cost", "tokens/(parameter s)", "throughput per parameter", "higher"),
        Column("images_per_s", "cost", "images/s", "images in a second", "higher"),
        Column("energy_J_per_image", "cost", "J", "energy per image", "lower", conditions=ENERGY_CONDITIONS),
        Column("tokens_per_image", "setting"),
        Column("experts", "setting"),
        Column("parameters_active", "cost", label="active parameters", better="lower"),
        Column("objective", "setting"),
        Column("global_batch", "setting"),
        Column("compile", "setting"),
        Column("kernel", "setting"),
        Column("held_out_images", "condition"),
        Column("images_seen", "condition"),
        Column("runs", "condition"),
        Column("seeds", "condition"),
    ),
)  # fmt: skip
