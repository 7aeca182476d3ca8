"""Validates windows once the samples are complete: a window whose samples are not what they should be is invalid."""

from collections.abc import Mapping, Sequence
from typing import Any

from effllm.telemetry.integrate import starved_time
from effllm.telemetry.readings import Readings
from effllm.telemetry.sources.base import Source
from effllm.telemetry.spool import TICK
from effllm.telemetry.windows import WindowRecord

# A window stands when samples came no further apart than this many periods ...
ALLOWED_GAP_PERIODS = 3
# ... but for this share of its time: one late sample in a long window says nothing about the rest.
_STARVED_SHARE = 0.05


def validate_windows(
    windows: Sequence[WindowRecord],
    sources: Sequence[Source],
    readings: Readings,
    events: Sequence[Mapping[str, Any]],
    period_s: float,
) -> None:
    """Invalidate windows in which a source was lost or the sampler starved.

    `events` are the sampler's. A `lost` event invalidates every window that ends after it; windows that ended before
    stand. A sampler that was stopped or killed shows as starvation in the windows that it left uncovered.
    """
    lost = {event["source"]: event for event in events if event["event"] == "lost"}
    sampled = [source for source in sources if source.quantities and not source.in_workload]
    for window in windows:
        for name, event in lost.items():
            if event["time_ns"] < window.end_ns:
                window.invalidate(f"source {name} failed: {event['reason']}")
        for source in sampled:
            if source.name not in lost:
                _check_gaps(window, source, readings, max(period_s, source.min_period_s))


def _check_gaps(window: WindowRecord, source: Source, readings: Readings, period_s: float) -> None:
    times, _ = readings.series(source.name, TICK)
    allowed_s = ALLOWED_GAP_PERIODS * period_s
    starved_s = sum(starved_time(times, s.start_s, s.end_s, allowed_s) for s in window.segments)
    if starved_s > _STARVED_SHARE * window.duration_s:
        window.invalidate(
            f"the sampler starved: {source.name} was not read for {starved_s:.3g} s of {window.duration_s:.3g} s"
        )
