"""Plausibility rules of serving: whether the figures are of the engine, and not of whoever asked it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from effllm.results.serving import GreedyCheck, SaturationStep
from effllm.results.telemetry import Finding, Severity
from effllm.serving.dispatch import Completion

_MAX_LAG_OF_LATENCY = 0.1
_MAX_CLIENT_CPU = 0.9
_HIGH_CLIENT_CPU = 0.5
_MIN_FIRST_IDENTICAL = 0.5
_MAX_OFF = 1.5
_MAX_PIECE = 1.1


def check_errors(completions: Sequence[Completion]) -> list[Finding]:
    """Every request is answered in full: an engine that drops some has an easier load than it was given."""
    said = Counter(completion.error for completion in completions if completion.error is not None)
    if not said:
        return []
    (first, _), *others = said.most_common()
    more = f", and {len(others)} other error{'s' * (len(others) > 1)}" if others else ""
    message = f"{said.total()} of {len(completions)} requests failed: {first}{more}"
    return [Finding("request_errors", "error", message)]


def check_rate(asked_per_s: float | None, came_per_s: float | None) -> list[Finding]:
    """Requests came about as often as they were to: few gaps of a bursty distribution need not have its mean."""
    if asked_per_s is None or came_per_s is None or asked_per_s / _MAX_OFF <= came_per_s <= asked_per_s * _MAX_OFF:
        return []
    message = f"requests came at {came_per_s:.3g} a second where {asked_per_s:.3g} were asked for: take more requests"
    return [Finding("rate", "warning", message)]


def check_pieces(completions: Sequence[Completion]) -> list[Finding]:
    """Tokens came one by one, so that the times between arrivals are those between tokens."""
    answered = [completion for completion in completions if completion.error is None]
    pieces = sum(len(completion.token_counts) for completion in answered)
    tokens = sum(completion.output_tokens for completion in answered)
    if tokens <= _MAX_PIECE * pieces:
        return []
    message = f"tokens came {tokens / pieces:.3g} at a time: itl is the time between these, ttft that of the first"
    return [Finding("pieces", "warning", message)]


def dispatch_lag_p99_s(completions: Sequence[Completion]) -> float:
    """How late all but one of a hundred requests were sent, at most."""
    return float(np.percentile([completion.dispatch_lag_s for completion in completions], 99))


def check_dispatch_lag(completions: Sequence[Completion]) -> list[Finding]:
    """Requests were sent when they were due: their latencies count from then, and the rest is the client's."""
    answered = [c for c in completions if c.error is None]
    if not answered:
        return []
    lag_s = dispatch_lag_p99_s(completions)
    first_s = float(np.median([c.token_times_s[0] - c.scheduled_s for c in answered]))
    whole_s = float(np.median([c.token_times_s[-1] - c.scheduled_s for c in answered]))
    bounds: tuple[tuple[Severity, str, float], ...] = (
        ("error", "request", whole_s),
        ("warning", "first token", first_s),
    )
    for severity, name, latency_s in bounds:
        if lag_s > _MAX_LAG_OF_LATENCY * latency_s:
            message = (
                f"one of a hundred requests was sent {1000 * lag_s:.3g} ms late or more, above "
                f"{_MAX_LAG_OF_LATENCY:.0%} of the median time of a {name}, {1000 * latency_s:.3g} ms"
            )
            return [Finding("dispatch_lag", severity, message)]
    return []


def check_client(cpu_fraction: float) -> list[Finding]:
    """Sending and receiving, in one thread, is not what sets the pace."""
    if cpu_fraction <= _HIGH_CLIENT_CPU:
        return []
    severity: Severity = "error" if cpu_fraction > _MAX_CLIENT_CPU else "warning"
    return [Finding("client_cpu", severity, f"sending and receiving took {cpu_fraction:.0%} of a core")]


def check_saturated(steps: Sequence[SaturationStep], gain: float) -> list[Finding]:
    """More requests at once would not have given a higher rate."""
    if not steps or (len(steps) > 1 and steps[-1].requests_per_s <= (1 + gain) * steps[-2].requests_per_s):
        return []
    message = (
        f"{steps[-1].concurrency} requests at once, the most that were tried, may not saturate the engine: raise "
        "saturation.maximum_concurrency"
    )
    return [Finding("saturation", "warning", message)]


def check_greedy(check: GreedyCheck, dtype: str | None) -> list[Finding]:
    """Served together, requests get what each gets alone: to the token in float32, up to rounding in 16 bits."""
    differ = check.requests - check.identical
    if not differ:
        return []
    message = f"greedy outputs of {differ} of {check.requests} requests differ from those of each alone"
    if dtype == "float32":
        return [Finding("greedy", "error", f"{message}, in float32")]
    if check.first_identical < _MIN_FIRST_IDENTICAL * check.requests:
        message += f", of {check.requests - check.first_identical} from the first token on"
        return [Finding("greedy", "error", message)]
    return [Finding("greedy", "warning", f"{message}: rounding in {dtype or 'its type'} turns near ties")]
