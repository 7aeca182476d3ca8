"""Cells over the runs of a row: one run, or several that are seeds of one configuration.

A figure over several runs is that of all their measured steps together, as the paper's equations sum over iterations.
A run that lacks a figure leaves the cell empty: a part of the seeds says nothing of all.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from effllm.tables.cells import Cell, Row, mean
from effllm.tables.training import Training
from effllm.telemetry.metrics import mean_ci95, token_throughput
from effllm.telemetry.validity import DISTURBED, Finding, status_of

Runs = Sequence[Training]
Figure = Callable[[Any], Cell]
"""Of one run."""


def collect(runs: Runs, figure: Figure) -> tuple[list[Any] | None, str | None]:
    """The figure of every run, or None with the reason of the first that lacks it."""
    values, missing = [], {}
    for run in runs:
        value, why = figure(run)
        values.append(value)
        if value is None:
            missing[run.id] = why
    if not missing:
        return values, None
    id, why = next(iter(missing.items()))
    is_everyones = list(missing.values()) == [why] * len(runs)
    return None, why if is_everyones else f"{id}: {why}"


def average(runs: Runs, figure: Figure) -> Cell:
    """Plain mean over runs."""
    values, why = collect(runs, figure)
    return (mean(values) if values else None), why


def highest(runs: Runs, figure: Figure) -> Cell:
    """Highest value over runs."""
    values, why = collect(runs, figure)
    return (max(values) if values else None), why


def shared_value(runs: Runs, figure: Figure) -> Cell:
    """The value that runs have in common; where they differ, all of them as text, separated by semicolons."""
    values, why = collect(runs, figure)
    unique = list(dict.fromkeys(values or []))
    return (unique[0] if len(unique) == 1 else "; ".join(map(str, unique)) or None), why


def ratio(runs: Runs, above: Figure, below: Figure) -> Cell:
    """Sum of one figure over the sum of another."""
    values, why = collect(runs, above)
    over, why_over = collect(runs, below)
    if values is None or over is None:
        return None, why or why_over
    return math.fsum(values) / math.fsum(over), None


def time_weighted_mean(runs: Runs, figure: Figure) -> Cell:
    """Average over the measured time: the integrals of AMU (Eq 1), PCU and AEC."""
    values, why = collect(runs, figure)
    seconds, why_seconds = collect(runs, Training.seconds)
    if values is None or seconds is None:
        return None, why or why_seconds
    return math.fsum(v * s for v, s in zip(values, seconds, strict=True)) / math.fsum(seconds), None


def latency_interval(runs: Runs) -> tuple[Cell, Cell]:
    """Low and high end of AL's 95 % interval in s: over the steps of one run, by Student's t over several runs."""
    if len(runs) == 1:
        interval, why = runs[0].efficiency("latency_s_per_iteration_ci95")
        low, high = interval or (None, None)
        return (low, why), (high, why)
    return interval_over(runs, lambda run: run.efficiency("latency_s_per_iteration"))


def interval_over(runs: Runs, figure: Figure) -> tuple[Cell, Cell]:
    """Low and high end of the 95 % t interval of a figure's mean over runs."""
    values, why = collect(runs, figure)
    _, low, high = mean_ci95(values) if values else (None, None, None)
    why = why or "one run has no interval over runs"
    return (low, why), (high, why)


def set_efficiency(row: Row, runs: Runs) -> None:
    """This project's efficiency columns that pretraining and fine-tuning share."""
    low, high = latency_interval(runs)
    row.set("AL_low", *low)
    row.set("AL_high", *high)
    row.set("mfu", *time_weighted_mean(runs, lambda run: run.efficiency("mfu")))
    row.set("AMU_scope", *shared_value(runs, Training.memory_scope))
    row.set("memory_peak_GB", *highest(runs, lambda run: run.window.memory("peak")))
    row.set("host_memory_peak_GB", *highest(runs, lambda run: run.window.figure("memory_host_peak_gb")))
    row.set("AMU_fraction", *time_weighted_mean(runs, lambda run: run.window.memory_fraction()))
    row.set("util_nvml", *time_weighted_mean(runs, lambda run: run.window.figure("util_nvml")))
    row.set("util_cpu", *time_weighted_mean(runs, lambda run: run.window.figure("util_cpu")))
    row.set("power_peak_w", *highest(runs, lambda run: run.window.figure("power_peak_w")))
    row.set("energy_source", *shared_value(runs, lambda run: run.window.figure("energy_source")))
    row.set("energy_scope", *shared_value(runs, lambda run: run.window.figure("energy_scope")))


def set_conditions(row: Row, runs: Runs, settings: Sequence[str]) -> None:
    """Where and how the steps ran (`settings` are keys of the spec), and how many of them were measured."""
    recipe = runs[0].recipe
    parallel = recipe["parallel"]
    row.set("parallel", parallel["strategy"] + (" with offload" if parallel["offload"] else ""))
    for key in settings:
        row.set(key, recipe[key])
    row.set("device", *shared_value(runs, Training.device_name))
    row.set("device_id", *shared_value(runs, Training.device_id))
    row.set("world_size", *shared_value(runs, lambda run: run.efficiency("world_size")))
    row.set("threads", *shared_value(runs, lambda run: run.efficiency("threads")))
    row.set("software", *shared_value(runs, Training.software))
    steps, why = collect(runs, Training.steps)
    row.set("steps_measured", sum(steps) if steps else None, why)
    seconds, why = collect(runs, Training.seconds)
    row.set("seconds_measured", math.fsum(seconds) if seconds else None, why)


def finish(row: Row, runs: Runs) -> dict[str, Any]:
    """The row with what the plausibility rules say and its status: the first failed run's, or `invalid`."""
    findings = [(run, finding) for run in runs for finding in run.findings()]

    def message(run: Training, text: str | None) -> str:
        if len(runs) == 1:
            return str(text)
        begin = f"{DISTURBED}: " if str(text).startswith(f"{DISTURBED}: ") else ""
        return f"{begin}{run.id}: {str(text).removeprefix(begin)}"

    warnings = [message(run, finding.message) for run, finding in findings if finding.severity == "warning"]
    row.set("warnings", "; ".join(warnings))
    failed = next((run for run in runs if run.result.status != "ok"), None)
    if failed:
        return row.finish(failed.result.status, message(failed, failed.result.reason))
    named = [Finding(finding.rule, finding.severity, message(run, finding.message)) for run, finding in findings]
    return row.finish(*status_of(named))


def throughput_of(runs: Runs, tokens: Figure) -> Cell:
    """TT over the measured steps of all runs, in tokens per parameter and s; every parameter counts, active or not."""
    counted, why = collect(runs, tokens)
    seconds, why_seconds = collect(runs, lambda run: run.seconds())
    parameters, why_parameters = shared_value(runs, lambda run: run.quality("parameters"))
    if counted is None or seconds is None or parameters is None:
        return None, why or why_seconds or why_parameters
    return token_throughput(counted, parameters, seconds), None
