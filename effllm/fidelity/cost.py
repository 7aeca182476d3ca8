"""What sampling costs: rates, energy, memory and utilisation, with a reason for each that is None."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from effllm.fidelity.settings import SamplingProtocol
from effllm.models.dit.costs import forward_flops
from effllm.results.fidelity import SamplingCost
from effllm.results.telemetry import DeviceInfo, Finding
from effllm.telemetry import Telemetry
from effllm.telemetry.metrics import energy_above_idle_j, mean_ci95, model_flops_utilization
from effllm.telemetry.validity import check_mfu, check_short_windows, check_summary, status_of

IDLE, WORK = "idle", "sampling"
_FIGURES = (
    "seconds_per_image",
    "images_per_s",
    "images_per_s_ci95",
    "energy_j_per_image",
    "energy_above_idle_j_per_image",
    "power_avg_w",
    "memory_peak_gb",
    "mfu",
    "idle",
    "telemetry",
)


@dataclass
class Work:
    """The batches that this process has sampled, and the images that it found."""

    images_resumed: int = 0
    images: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self.images.append(images)
        self.seconds.append(seconds)


def sampling_cost(
    work: Work, telemetry: Telemetry | None, info: DeviceInfo, protocol: SamplingProtocol, shape: Any
) -> SamplingCost:
    """The record of a sampling whose batches are `work`; `telemetry` is None where there were none."""
    flops = protocol.sampler.evaluations * forward_flops(shape)
    known: dict[str, Any] = {
        "device": info,
        "threads": torch.get_num_threads(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "dtype": protocol.dtype,
        "batch_size": protocol.batch_size,
        "images": sum(work.images),
        "images_resumed": work.images_resumed,
        "flops_per_image": flops,
    }
    if telemetry is None:
        why = "an earlier process, which was stopped after the last batch, had sampled all images"
        absent: dict[str, Any] = dict.fromkeys(_FIGURES)
        reasons = dict.fromkeys(_FIGURES, why)
        return SamplingCost(**known, **absent, reasons=reasons, findings=[], status="ok", reason=None)
    idle, summary = telemetry.summary(IDLE), telemetry.summary(WORK)
    images, seconds = sum(work.images), sum(work.seconds)
    rates = [count / taken for count, taken in zip(work.images, work.seconds, strict=True)]
    _, low, high = mean_ci95(rates)
    above_idle_j = energy_above_idle_j(summary.energy_j, summary.duration_s, idle.power_avg_w)
    on_cpu = info.kind == "cpu"
    memory = "memory_host_peak_gb" if on_cpu else "allocator_peak_gb"
    mfu = None
    if info.name is not None:
        mfu = model_flops_utilization(flops * images, seconds, info.name, protocol.dtype)
    figures: dict[str, Any] = {
        "seconds_per_image": seconds / images,
        "images_per_s": images / seconds,
        "images_per_s_ci95": None if low is None else [low, high],
        "energy_j_per_image": None if summary.energy_j is None else summary.energy_j / images,
        "energy_above_idle_j_per_image": None if above_idle_j is None else above_idle_j / images,
        "power_avg_w": summary.power_avg_w,
        "memory_peak_gb": getattr(summary, memory),
        "mfu": mfu,
    }
    energy = summary.cell("energy_j")[1]
    absences = {
        "images_per_s_ci95": "one batch was measured",
        "energy_j_per_image": energy,
        "energy_above_idle_j_per_image": energy or idle.cell("power_avg_w")[1],
        "power_avg_w": summary.cell("power_avg_w")[1],
        "memory_peak_gb": summary.cell(memory)[1],
        "mfu": f"no peak of {info.name!r} in {protocol.dtype} is known",
    }
    findings = [*check_summary(summary, info), *check_mfu(mfu), *_resumed(work)]
    findings += check_short_windows(summary.duration_s)
    status, reason = status_of(findings)
    return SamplingCost(
        **known,
        **figures,
        idle=idle,
        telemetry=summary,
        findings=findings,
        status=status,
        reason=reason,
        reasons={key: str(why) for key, why in absences.items() if figures[key] is None},
    )


def _resumed(work: Work) -> list[Finding]:
    if not work.images_resumed:
        return []
    message = f"{work.images_resumed} images are those of an earlier process: the figures are of the others"
    return [Finding("resumed", "warning", message)]
