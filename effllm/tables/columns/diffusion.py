"""The columns of Tables 10 and 11."""

from effllm.tables.columns.shared import ENERGY_CONDITIONS, MEMORY_CONDITIONS, TRAINING, TRAINING_SCOPE
from effllm.tables.description import Better, Column, Description

# Losses compare where the same draws of the same images were scored.
_IMAGES = ("objective", "held_out_images")

_FEATURES = ("features", "fidelity_images", "fidelity_reference")


def _distance(name: str, label: str, better: Better) -> Column:
    """A figure of fidelity with its interval."""
    return Column(name, "quality", "", label, better, (f"{name}_low", f"{name}_high"), _FEATURES)


DIFFUSION = Description(
    title="diffusion transformers",
    names=("model", "method"),
    subject="model",
    signature=("FID", "images_per_s"),
    quality="FID",
    costs=("AL_s_per_iter", "memory_peak_GB", "energy_J_per_image"),
    scope=("tokens_per_image", "objective", "global_batch", "images_seen", "held_out_images", *TRAINING_SCOPE),
    declared=(
        Column("model", "name"),
        Column("method", "name"),
        _distance("FID", "Frechet distance", "lower"),
        _distance("KID", "kernel distance", "lower"),
        _distance("precision", "precision", "higher"),
        _distance("recall", "recall", "higher"),
        _distance("label_agreement", "labels that are found again", "higher"),
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
        Column(
            "sampling_images_per_s", "cost", "images/s", "sampled images in a second", "higher",
            interval=("sampling_images_per_s_low", "sampling_images_per_s_high"),
        ),
        Column(
            "sampling_J_per_image", "cost", "J", "energy of a sampled image", "lower", conditions=ENERGY_CONDITIONS
        ),
        Column("sampling_memory_GB", "cost", "GB", "peak memory of sampling", "lower", conditions=MEMORY_CONDITIONS),
        Column("FID_floor", "condition", label="Frechet distance of real images"),
        Column("fidelity_images", "condition"),
        Column("fidelity_seeds", "condition"),
        Column("fidelity_reference", "condition"),
        Column("features", "condition"),
        Column("sampler", "setting"),
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
