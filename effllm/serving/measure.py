"""One load, measured: the trace is written and played, and what came of it is kept, so that a killed job goes on."""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from effllm.results.serving import CompletedRequest, EngineLoad, ServedLoad, ServingEnergy
from effllm.results.telemetry import DeviceInfo, Finding, TelemetrySummary
from effllm.runtime.artifact import write_text
from effllm.serving.dispatch import Completion, Played, UsageSample, play
from effllm.serving.engine import Engine
from effllm.serving.findings import (
    check_client,
    check_dispatch_lag,
    check_errors,
    check_pieces,
    check_rate,
    dispatch_lag_p99_s,
)
from effllm.serving.latency import load_figures
from effllm.serving.settings import Serving
from effllm.serving.trace import Trace, TracedRequest
from effllm.telemetry import Telemetry
from effllm.telemetry.metrics import energy_above_idle_j, energy_per_token_j
from effllm.telemetry.validity import check_short_windows, check_summary, status_of

TRACE, KEPT, TELEMETRY = "trace.jsonl", "load.json", "telemetry"
_WINDOW = "requests"
_SILENT = "the engine does not say"


@dataclass(frozen=True)
class Load:
    """A load to be measured: its id, its requests, how many of them are warm-up, and the rate that was asked for."""

    id: str
    trace: Trace
    warmup: int
    fraction: float | None = None
    requests_per_s: float | None = None


class Kept(BaseModel):
    """What is kept of a load that was measured."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    load: ServedLoad
    completions: list[CompletedRequest]


def kept(directory: Path) -> Kept | None:
    """What an earlier run of the job has kept of a load; None where it was not measured."""
    path = directory / KEPT
    return Kept.model_validate_json(path.read_bytes()) if path.is_file() else None


def measure(
    engine: Engine,
    load: Load,
    serving: Serving,
    directory: Path,
    info: DeviceInfo,
    devices: Sequence[str],
    idle: TelemetrySummary,
) -> Kept:
    """Play a load and keep what came of it in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    load.trace.write(directory / TRACE)
    window = _Window()
    time.sleep(serving.cooldown_s)
    with Telemetry(directory / TELEMETRY, device=devices, period_s=serving.sample_period_s) as telemetry:

        def sent(request: TracedRequest) -> None:
            # Between the last request of the warm-up and the first that counts.
            if request.index == load.warmup - 1:
                telemetry.begin_window(_WINDOW)
                window.start_s = time.perf_counter()

        played = play(engine, load.trace, patience_s=serving.patience_s, sent=sent)
        telemetry.end_window(_WINDOW)
    tokens = _tokens_since(played, window.start_s - played.start_s)
    served = _served(load, played, tokens, telemetry.summary(_WINDOW), info, idle)
    result = Kept(load=served, completions=[_completed(completion) for completion in played.completions])
    write_text(directory / KEPT, json.dumps(result.model_dump(exclude_unset=True), allow_nan=False))
    return result


@dataclass
class _Window:
    """When the window of the telemetry began, by the clock of the engine's events."""

    start_s: float = math.inf


def _served(
    load: Load, played: Played, tokens: int, summary: TelemetrySummary, info: DeviceInfo, idle: TelemetrySummary
) -> ServedLoad:
    counted = played.completions[load.warmup :]
    client_cpu = played.client_cpu_s / played.duration_s if played.duration_s else 0.0
    findings: list[Finding] = [
        *check_errors(played.completions),
        *check_rate(load.requests_per_s, load.trace.rate_per_s),
        *check_pieces(counted),
        *check_dispatch_lag(counted),
        *check_client(client_cpu),
        *check_summary(summary, info),
        *check_short_windows(summary.duration_s),
    ]
    status, reason = status_of(findings)
    errors = Counter(completion.error for completion in played.completions if completion.error is not None)
    return ServedLoad(
        status=status,
        reason=reason,
        findings=findings,
        fraction=load.fraction,
        requests_per_s=load.requests_per_s,
        concurrency=load.trace.concurrency,
        warmup_requests=load.warmup,
        errors=dict(errors),
        figures=load_figures(counted) if any(completion.error is None for completion in counted) else None,
        window_output_tokens=tokens,
        dispatch_lag_p99_ms=1000 * dispatch_lag_p99_s(counted),
        client_cpu_fraction=client_cpu,
        engine=_engine_load(played.usage),
        energy=_energy(summary, idle, tokens),
        telemetry=summary,
    )


def _tokens_since(played: Played, start_s: float) -> int:
    return sum(
        count
        for completion in played.completions
        for time_s, count in zip(completion.token_times_s, completion.token_counts, strict=True)
        if time_s >= start_s
    )


def _energy(summary: TelemetrySummary, idle: TelemetrySummary, tokens: int) -> ServingEnergy:
    energy_j = summary.energy_j
    values = {
        "energy_j_per_output_token": energy_j,
        "energy_above_idle_j_per_output_token": energy_above_idle_j(energy_j, summary.duration_s, idle.power_avg_w),
    }
    unmeasured = summary.reasons.get("energy_j") or idle.reasons.get("power_avg_w") or "the telemetry does not say why"
    missing = unmeasured if tokens else "no token came in the window"
    figures = {key: energy_per_token_j(value, tokens) if tokens else None for key, value in values.items()}
    return ServingEnergy(**figures, reasons={key: missing for key, value in figures.items() if value is None})


def _engine_load(samples: Sequence[UsageSample]) -> EngineLoad:
    cache = [s.usage.cache_fraction for s in samples if s.usage.cache_fraction is not None]
    running = [s.usage.running for s in samples if s.usage.running is not None]
    waiting = [s.usage.waiting for s in samples if s.usage.waiting is not None]
    preempted = [s.usage.preemptions for s in samples if s.usage.preemptions is not None]
    figures = {
        "cache_mean_fraction": sum(cache) / len(cache) if cache else None,
        "cache_peak_fraction": max(cache, default=None),
        "running_mean": sum(running) / len(running) if running else None,
        "running_peak": max(running, default=None),
        "waiting_peak": max(waiting, default=None),
        "preemptions": preempted[-1] - preempted[0] if preempted else None,
    }
    reasons = {key: _SILENT for key, value in figures.items() if value is None}
    return EngineLoad.model_validate({**figures, "reasons": reasons})


def _completed(completion: Completion) -> CompletedRequest:
    counts = list(completion.token_counts)
    return CompletedRequest(
        scheduled_s=round(completion.scheduled_s, 6),
        dispatched_s=round(completion.dispatched_s, 6),
        prompt_tokens=completion.prompt_tokens,
        token_times_s=[round(time_s, 6) for time_s in completion.token_times_s],
        token_counts=None if all(count == 1 for count in counts) else counts,
        error=completion.error,
    )
