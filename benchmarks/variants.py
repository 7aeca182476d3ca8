"""Variants of one thing, measured one after the other in a process, which several benchmarks do."""

import gc
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from effllm.telemetry import device_info

Results = dict[str, dict[str, Any]]


def measure_variants(
    names: Iterable[str],
    measure: Callable[[str], dict[str, Any]],
    report: Callable[[str, dict[str, Any]], None],
    ratios: Callable[[Results], dict[str, float]],
    device: str,
    output: Path | None,
    results: Results,
) -> None:
    """Measure and print the variants that `results` lacks, and write what there is after each one.

    One that does not fit into memory has the status `oom`; the others go on.
    """
    for name in names:
        if name in results:
            continue
        try:
            results[name] = measure(name)
        except torch.OutOfMemoryError as error:
            results[name] = {"status": "oom", "reason": str(error).splitlines()[0]}
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
