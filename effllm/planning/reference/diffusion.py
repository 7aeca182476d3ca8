"""Diffusion by the share of the peak that training reached, and what has no rate of its own by allowances."""

import math
from collections.abc import Mapping
from typing import Any

from effllm.fidelity.settings import FidelityProtocol, SamplingProtocol
from effllm.models.dit.architecture import side
from effllm.models.dit.costs import parameter_count
from effllm.planning.reference.processor import images_of
from effllm.planning.reference.rates import RANGE, Reference, Row, all_of, beyond_size, good_for, rows
from effllm.planning.reference.spreading import spreading
from effllm.stages.latents import CHANNELS, DECODER_FLOPS_PER_PIXEL, DOWNSCALE, ENCODER_FLOPS_PER_PIXEL
from effllm.telemetry.peaks import peak_flops_per_s
from effllm.training.diffusion_settings import DiffusionRun

# From the start of the stage to the first steady step or batch.
_START_S = 10.0
# Convolutions in float32, of an autoencoder and of Inception, as a share of the peak in 16 bits: an allowance, half of
# the 67 TFLOP/s that an H100 has in float32.
_CONVOLUTIONS = 1 / 30
_INCEPTION_FLOPS = 11.4e9
# Products of features in float64 on the cores of a job: an allowance.
_FEATURE_FLOPS_PER_S = 2e11
# Power of diffusion was not measured: that of the training of a decoder at a share of the peak like these.
_POWER_W = 610.0
_DEVICE = "NVIDIA H100 80GB HBM3"


def diffusing(
    config: Mapping[str, Any], flops: float, device: str, network_b_per_s: float | None = None
) -> Reference | None:
    """Time of a run of diffusion; None for a device without a peak. network_b_per_s: as `spreading` has it."""
    peak = peak_flops_per_s(device, "bfloat16")
    if peak is None:
        return None
    run = DiffusionRun.model_validate(dict(config))
    row, doubts = _nearest(run)
    measured = float(row["images"])
    if not 1 / RANGE <= run.micro_batch_size / measured <= RANGE:
        doubts.append(f"{run.micro_batch_size} images at a time, not {measured:.0f}")
    arithmetic_s = flops / (peak * float(row["mfu"]) * run.parallel.world_size)
    seconds, work = _START_S + arithmetic_s, f"{run.max_steps:,} steps of {run.global_batch_size:,} images; {_OF_POWER}"
    parameters = parameter_count(run.architecture.shape()).total
    spread = spreading(config, parameters, arithmetic_s / run.max_steps, device, network_b_per_s)
    if spread is not None:
        seconds, work = seconds + spread.seconds * run.max_steps, f"{work}; {spread.sentence}"
        doubts += spread.doubts
    return Reference(seconds, _POWER_W, row["device"], _rate(row), work, all_of(doubts))


def sampling(
    config: Mapping[str, Any], parent: Mapping[str, Any], pixels: int, flops: float, device: str
) -> Reference | None:
    """Time of samples from a run, of which `pixels` of each image are decoded (0: it draws pixels itself)."""
    peak = peak_flops_per_s(device, "bfloat16")
    if peak is None:
        return None
    convolutions = _CONVOLUTIONS * peak
    protocol, run = SamplingProtocol.model_validate(dict(config)), DiffusionRun.model_validate(dict(parent))
    row, doubts = _nearest(run)
    images = protocol.images * len(protocol.seeds)
    decoding_s = images * pixels * DECODER_FLOPS_PER_PIXEL / convolutions
    seconds = _START_S + protocol.idle_s + flops / (peak * float(row["mfu"])) + decoding_s
    decoded = f", {decoding_s:,.0f} s of decoding (an allowance)" if pixels else ""
    work = f"{images:,} images in {protocol.sampler.evaluations:,} evaluations{decoded}; {_OF_POWER}"
    return Reference(seconds, _POWER_W, row["device"], _rate(row), work, all_of(["sampling was not measured", *doubts]))


def encoding(config: Mapping[str, Any], images: Mapping[str, Any], device: str) -> Reference | None:
    """Time of latents, of both views where there are two."""
    convolutions = _convolutions_per_s(device)
    if convolutions is None:
        return None
    count = images_of(images) * (2 if config["mirrored"] else 1)
    seconds = _START_S + count * images["size"] ** 2 * ENCODER_FLOPS_PER_PIXEL / convolutions
    # In float16, of Stable Diffusion's shape.
    disk_b = 2.0 * count * CHANNELS * (images["size"] / DOWNSCALE) ** 2
    work = f"{count:,} images to encode; {_OF_POWER}"
    return Reference(seconds, _POWER_W, _DEVICE, _ALLOWANCE, work, disk_b=disk_b)


def comparing(
    config: Mapping[str, Any], sample: Mapping[str, Any], images: Mapping[str, Any], width: int, device: str
) -> Reference | None:
    """Time of fidelity: features of the samples and of the reference, and products of all pairs for every seed."""
    convolutions = _convolutions_per_s(device)
    if convolutions is None:
        return None
    protocol, seeds = FidelityProtocol.model_validate(dict(config)), len(sample["seeds"])
    samples, reference = sample["images"], images_of(images)
    reference = min(reference, protocol.reference_images or reference)
    seen = (seeds + 1) * samples + reference
    # Of each seed and of the floor: both sets with themselves twice, and three times with each other.
    pairs = (seeds + 1) * (2 * samples**2 + 2 * reference**2 + 3 * samples * reference)
    seconds = _START_S + seen * _INCEPTION_FLOPS / convolutions + 2 * width * pairs / _FEATURE_FLOPS_PER_S
    return Reference(seconds, _POWER_W, _DEVICE, _ALLOWANCE, f"{seen:,} images and {pairs:.2g} pairs; {_OF_POWER}")


_OF_POWER = f"power was not measured: {_POWER_W:.0f} W of a decoder's training"
_ALLOWANCE = "an allowance of a thirtieth of the peak in 16 bits, as convolutions are in float32"


def _convolutions_per_s(device: str) -> float | None:
    peak = peak_flops_per_s(device, "bfloat16")
    return None if peak is None else _CONVOLUTIONS * peak


def _nearest(run: DiffusionRun) -> tuple[Row, list[str | None]]:
    """The measured run nearest to this one, and why its rate is not good for it."""
    shape = run.architecture.shape()
    parameters, patches = parameter_count(shape).total, side(shape) ** 2

    def distance(row: Row) -> tuple[int, int, float]:
        unlike = (row["attention"] != shape.attention) + (row["feed_forward"] != shape.feed_forward)
        size = abs(math.log(parameters / float(row["parameters"]))) + abs(math.log(patches / float(row["patches"])))
        return unlike, (row["compiled"] == "true") != run.compile, size

    row = min(rows("diffuse"), key=distance)
    doubts: list[str | None] = [beyond_size(parameters, float(row["parameters"]))]
    if distance(row)[0]:
        doubts.append(f"no run of {shape.attention} with {shape.feed_forward} was measured")
    if distance(row)[1]:
        doubts.append("no such run was compiled" if run.compile else "the run was compiled")
    if not 1 / RANGE <= patches / float(row["patches"]) <= RANGE:
        doubts.append(f"images of {patches} patches, not {row['patches']}")
    return row, doubts


def _rate(row: Row) -> str:
    parameters = float(row["parameters"])
    return f"MFU {float(row['mfu']):.3g} of {row['run']} on {row['device']}, {good_for(parameters)}"
