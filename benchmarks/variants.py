"""Variants of one thing, measured one after the other in a process, which several benchmarks do."""

import gc
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from effllm.telemetry import device_info

Results = dict[str, dict[str, Any]]
Step = Callable[[], None]
LISTED_KERNELS = 15


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def kernel_times(step: Step, device: str) -> list[tuple[str, float, int]]:
    """Kernels of one step, or its operations on a processor: name, seconds and calls, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        step()
        synchronize(device)
    times = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if microseconds:
            times.append((event.key, microseconds / 1e6, event.count))
    return sorted(times, key=lambda entry: -entry[1])


def listed(times: list[tuple[str, float, int]], total_s: float) -> list[dict[str, Any]]:
    """The first of these kernels as the output has them."""
    return [
        {"name": name[:200], "seconds": seconds, "calls": calls, "share": seconds / total_s}
        for name, seconds, calls in times[:LISTED_KERNELS]
    ]


def measure_variants(
    names: Iterable[str],
    measure: Callable[[str], dict[str, Any]],
    report: Callable[[str, dict[str, Any]], None],
    ratios: Callable[[Results], dict[str, float]],
    device: str,
    output: Path | None,
    results: Results,
    budget_s: float = math.inf,
) -> None:
    """Measure and print the variants that `results` lacks, and write what there is after each one.

    One that does not fit into memory has the status `oom`, one that fails otherwise `failed`; the others go on. None
    begins after `budget_s`.
    """
    end = time.monotonic() + budget_s
    for name in names:
        if name in results or time.monotonic() > end:
            continue
        try:
            results[name] = measure(name)
        except torch.OutOfMemoryError as error:
            results[name] = {"status": "oom", "reason": str(error).splitlines()[0]}
        except RuntimeError as error:
            results[name] = {"status": "failed", "reason": str(error).splitlines()[0]}
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        report(name, results[name])
        if output:
            content = {
                "device": device_info(device).model_dump(exclude_unset=True),
                "ratios": ratios(results),
                "torch": torch.__version__,
                "variants": results,
            }
            output.write_text(json.dumps(content, indent=1) + "\n")
    for label, ratio in ratios(results).items():
        print(f"{label}: {ratio:.2f}")
