"""Figures of one workload: latency, throughput, utilisation and energy, with a reason for each that is None."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedConfig

from effllm.models.costs import cache_bytes, decoding_flops, forward_flops, weights_read
from effllm.models.text import text_config
from effllm.models.vision_language.text import text_shape
from effllm.profiling.decoding import Generation
from effllm.profiling.images import SequenceImages
from effllm.results.profile import Energy, Latency, Utilization, VisionFigures
from effllm.results.telemetry import TelemetrySummary
from effllm.study.evaluation import Workload
from effllm.telemetry.metrics import (
    energy_above_idle_j,
    energy_per_token_j,
    inference_throughput,
    latency_percentiles_ms,
    mean_ci95,
    model_bandwidth_utilization,
    model_flops_utilization,
)

NO_IMAGES = SequenceImages()


@dataclass(frozen=True)
class ModelCost:
    """What utilisation is computed from: the model's configuration, its weights' bytes, the devices' name and number.

    The peak of several devices is the sum of theirs. `vision_bytes` of the weights are no part of the language model,
    and no decoding step reads them.
    """

    config: PreTrainedConfig
    weight_bytes: int
    dtype: torch.dtype
    device_name: str
    devices: int = 1
    vision_bytes: int = 0


def latency_figures(
    windows: Sequence[Sequence[Generation]], workload: Workload, images: SequenceImages = NO_IMAGES
) -> Latency:
    """Latency and throughput of the windows of whole generations; `..._ci95` is [low, high] over windows.

    `latency_ms` is AL, the mean time of one generation; `throughput_tokens_per_s` is IT, all generated tokens over
    all the time, prefill included; decoding alone is `decode_tokens_per_s`.
    """
    generations = [generation for window in windows for generation in window]
    tokens = [generation.generated_tokens for generation in generations]
    seconds = [generation.total_s for generation in generations]
    first_ms = [generation.first_token_s * 1e3 for generation in generations]
    token_ms = [interval * 1e3 for generation in generations for interval in generation.token_s]
    latencies_ms = [1e3 * sum(g.total_s for g in window) / len(window) for window in windows]
    rates = [inference_throughput([g.generated_tokens for g in w], [g.total_s for g in w]) for w in windows]
    decoded = sum(tokens) - len(generations) * workload.batch_size
    prompt_tokens = workload.batch_size * (workload.prompt_tokens + images.tokens) * len(generations)
    first_token, token = latency_percentiles_ms(first_ms), latency_percentiles_ms(token_ms)
    return Latency(
        decode_tokens_per_s=decoded / sum(token_ms) * 1e3,
        first_token_ms_p50=first_token["p50_ms"],
        first_token_ms_p95=first_token["p95_ms"],
        first_token_ms_p99=first_token["p99_ms"],
        generated_tokens=sum(tokens),
        generations=len(generations),
        latency_ms=float(np.mean(latencies_ms)),
        latency_ms_ci95=list(mean_ci95(latencies_ms)[1:]),
        latency_ms_by_window=latencies_ms,
        prefill_tokens_per_s=prompt_tokens / sum(first_ms) * 1e3,
        throughput_tokens_per_s=inference_throughput(tokens, seconds),
        throughput_tokens_per_s_ci95=list(mean_ci95(rates)[1:]),
        token_ms_p50=token["p50_ms"],
        token_ms_p95=token["p95_ms"],
        token_ms_p99=token["p99_ms"],
    )


def energy_figures(
    generate: TelemetrySummary,
    prefill: TelemetrySummary,
    idle: TelemetrySummary,
    figures: Latency,
    prefills: int,
    workload: Workload,
) -> Energy:
    """Energy per token from the telemetry of the phases, each with its reason if None.

    `decode_energy_j_per_token` is what a generation takes beyond a prefill of its own, over its decoded tokens.
    """
    energy, reason = generate.energy_j, generate.reasons.get("energy_j")
    above_idle = energy_above_idle_j(energy, generate.duration_s, idle.power_avg_w)
    result: dict[str, float | None] = {
        "energy_j_per_token": energy_per_token_j(energy, figures.generated_tokens),
        "energy_above_idle_j_per_token": energy_per_token_j(above_idle, figures.generated_tokens),
        "decode_energy_j_per_token": None,
    }
    if energy is None or prefill.energy_j is None:
        reason = reason or prefill.reasons.get("energy_j")
    else:
        decoding = energy / figures.generations - prefill.energy_j / prefills
        result["decode_energy_j_per_token"] = decoding / (workload.batch_size * (workload.new_tokens - 1))
    missing = reason or idle.reasons.get("power_avg_w") or "the telemetry does not say why"
    return Energy(**result, reasons={key: missing for key, value in result.items() if value is None})


def vision_figures(
    windows: Sequence[Sequence[Generation]],
    figures: Latency,
    telemetry: TelemetrySummary,
    workload: Workload,
    images: SequenceImages,
) -> VisionFigures:
    """What encoding the images of a workload takes, by the windows and the telemetry of that phase."""
    runs = [run for window in windows for run in window]
    encoding = latency_percentiles_ms([run.first_token_s * 1e3 for run in runs])
    encoded = len(runs) * workload.batch_size * images.count
    reason = telemetry.reasons.get("energy_j") or "the telemetry does not say why"
    return VisionFigures(
        images=images.count,
        image_tokens=images.tokens,
        encode_ms_p50=encoding["p50_ms"],
        encode_ms_p95=encoding["p95_ms"],
        language_first_token_ms_p50=figures.first_token_ms_p50 - encoding["p50_ms"],
        encode_flops=workload.batch_size * images.flops,
        energy_j_per_image=None if telemetry.energy_j is None else telemetry.energy_j / encoded,
        reasons={"energy_j_per_image": reason} if telemetry.energy_j is None else {},
    )


def utilization_figures(
    figures: Latency, workload: Workload, cost: ModelCost, images: SequenceImages = NO_IMAGES
) -> Utilization:
    """`prefill_mfu` and `decode_mbu`, fractions of the device's dense arithmetic and memory bandwidth peaks.

    Decoding moves the weights once per step and the cache of every sequence at its length then (its mean is taken);
    the weights are those on disk, so an int4 model moves fewer bytes, but for an input table that is not the head's
    too: of that a step reads a row. None with a reason for a device of unknown peaks or an architecture without cost
    formulas.
    """
    reasons: dict[str, str] = {}
    unknown_peak = f"the peak of {cost.device_name!r} is not in the table of peaks"
    try:
        # Generation needs the logits of the last position only; the formula counts the head at all of them.
        text, tokens = text_config(cost.config), workload.prompt_tokens + images.tokens
        shape = text_shape(cost.config) or cost.config
        head_flops = 2 * text.vocab_size * text.hidden_size * (tokens - 1)
        prefill_flops = workload.batch_size * (forward_flops(shape, tokens) - head_flops + images.flops)
        context = tokens + workload.new_tokens // 2
        weights = weights_read(shape, cost.weight_bytes - cost.vision_bytes, cost.dtype)
        step_bytes = weights + workload.batch_size * cache_bytes(shape, context, cost.dtype)
        step_flops = workload.batch_size * decoding_flops(shape, context)
    except ValueError as error:
        keys = ("prefill_flops", "decode_flops_per_step", "decode_bytes_per_step", "prefill_mfu", "decode_mbu")
        return Utilization(**dict.fromkeys(keys), reasons=dict.fromkeys(keys, str(error)))
    prefill_s = workload.batch_size * tokens / figures.prefill_tokens_per_s
    step_s = workload.batch_size / figures.decode_tokens_per_s
    dtype = str(cost.dtype).removeprefix("torch.")
    mfu = model_flops_utilization(prefill_flops / cost.devices, prefill_s, cost.device_name, dtype)
    mbu = model_bandwidth_utilization(step_bytes / cost.devices, step_s, cost.device_name)
    if mfu is None:
        reasons["prefill_mfu"] = unknown_peak
    if mbu is None:
        reasons["decode_mbu"] = unknown_peak
    return Utilization(
        decode_bytes_per_step=step_bytes,
        decode_flops_per_step=step_flops,
        decode_mbu=mbu,
        prefill_flops=prefill_flops,
        prefill_mfu=mfu,
        reasons=reasons,
    )


def relative_half_width(mean: float, interval: Sequence[float | None]) -> float:
    """Half the width of an interval over its mean; infinite where there is no interval."""
    low, high = interval
    return math.inf if low is None or high is None else (high - low) / 2 / abs(mean)
