"""Fine-tuning of image and video models by the share of the peak that each method reached, and their encodings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effllm.models.generators.shapes import shape_of_source
from effllm.planning.reference.processor import DIGITS
from effllm.planning.reference.rates import Reference, Row, all_of, beyond_size, good_for, rows
from effllm.stages.cost import Unknown
from effllm.stages.files import expand_paths
from effllm.telemetry.peaks import peak_flops_per_s
from effllm.training.tuning_costs import TuningCosts
from effllm.training.tuning_settings import TuningRun

# From the start of the stage to the first steady step or batch.
_START_S = 20.0
# Convolutions of an autoencoder in float32, and text encoders, as shares of the peak in 16 bits: allowances.
_CONVOLUTIONS, _TEXTS = 1 / 30, 1 / 4
# By torch's counter, at 1,024 pixels and for 17 frames of 832 x 480: FLOPs for a pixel of a frame.
_ENCODER_FLOPS = {"sd3": 4.7e6, "wan": 5.1e6}
# Numbers of latents for a pixel of a frame: 16 channels of an eighth of each side, of Wan a quarter of the frames.
_LATENTS = {"sd3": 16 / 8**2, "wan": 16 / 8**2 / 4}
_DEVICE = "NVIDIA H100 80GB HBM3"


def tuning(run: TuningRun, kind: str, costs: TuningCosts, flops: float, device: str) -> Reference | None:
    """Time of a run of so many FLOPs by a method of this kind; None for a device without a peak."""
    peak, row = peak_flops_per_s(device, "bfloat16"), _row_of(costs.shape.family.name, kind)
    if peak is None or row is None:
        return None
    scored = 2 * (run.held_out_samples or 0) * len(run.held_out_times) * costs.forward_flops
    drawn = 0
    if run.preview:
        ways = 1 if run.preview.guidance == 1 else 2
        drawn = 2 * run.preview.samples * run.preview.steps * ways * costs.forward_flops
    # What is recomputed is a forward pass more.
    recomputed = 4 / 3 if run.activation_checkpointing else 1
    total = recomputed * flops / run.parallel.world_size + scored + drawn
    measured = float(row["parameters"])
    doubts = [
        None if row["method"] == kind else f"no run of {kind} was measured",
        beyond_size(costs.shape.parameters(), measured),
        None if run.dtype == "bfloat16" else "it was measured in bfloat16",
    ]
    rate = f"MFU {float(row['mfu']):.3g} of {row['run']} on {row['device']}, {good_for(measured)}"
    work = f"{run.max_steps:,} steps of {run.samples_per_step:,} samples in the largest shape, scoring and previews"
    seconds = _START_S + total / (peak * float(row["mfu"]))
    return Reference(seconds, float(row["power_w"]), row["device"], rate, work, all_of(doubts))


def encoding(
    config: Mapping[str, Any], generator: Mapping[str, Any], captions: Mapping[str, Any], device: str
) -> Reference | None:
    """Time of the encodings of all samples, each with a caption of its own. Raises `Unknown` for their number."""
    peak = peak_flops_per_s(device, "bfloat16")
    if peak is None:
        return None
    try:
        shape = shape_of_source(generator)
    except ValueError as error:
        raise Unknown(str(error)) from None
    count, family, frames = samples_of(captions), shape.family.name, captions["frames"]
    sizes = [(int(width), int(height)) for width, _, height in (size.partition("x") for size in captions["shapes"])]
    pixels = max(width * height for width, height in sizes) * frames
    text_flops = 2 * (shape.text_parameters or 0) * config["text_tokens"]
    seconds = _START_S + count * (
        text_flops / (_TEXTS * peak) + pixels * _ENCODER_FLOPS[family] / (_CONVOLUTIONS * peak)
    )
    _, texts = shape.family.rows(shape.config, sizes[0], frames, config["text_tokens"])
    numbers = pixels * _LATENTS[family] + shape.family.text_numbers(shape.config, texts)
    rate = "an allowance of a quarter of the peak for texts, and of a thirtieth for convolutions in float32"
    return Reference(seconds, None, _DEVICE, rate, f"{count:,} samples, at most", disk_b=2.0 * count * numbers)


def samples_of(captions: Mapping[str, Any]) -> int:
    """Samples of a slice of the study, at most; raises `Unknown` where nobody has counted them."""
    source = captions["source"]
    if source["kind"] == "digits":
        return DIGITS
    if source["kind"] == "files":
        return sum(Path(path).suffix == ".txt" for path in expand_paths("captions", source["paths"]))
    raise Unknown(f"how many samples {source['repo']} has is not known before they are read")


def _row_of(family: str, kind: str) -> Row | None:
    """The measured run of a method on a transformer of the family, or of its slowest method; None without any."""
    of_family = [row for row in rows("tune") if row["family"] == family]
    if not of_family:
        return None
    found = [row for row in of_family if row["method"] == kind]
    return found[0] if found else min(of_family, key=lambda row: float(row["mfu"]))
