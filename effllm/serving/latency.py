"""Latencies of requests under load, counted from when each was to arrive, and their percentiles with intervals."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from effllm.intervals import effective_trials
from effllm.results.latency import LoadFigures, Percentile, Percentiles, RequestLatencies

LEVELS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_OUTSIDE = 0.025
"""Probability that each end of a 95 % interval may miss."""
_BLOCKS = 10
"""Long enough that the queue that one block leaves behind is little of what the next one waits for."""


class Completed(Protocol):
    """What these figures need to know of a request; times in s from the trace's start."""

    @property
    def scheduled_s(self) -> float:
        """When it was to arrive."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt."""

    @property
    def token_times_s(self) -> tuple[float, ...]:
        """When tokens arrived."""

    @property
    def token_counts(self) -> tuple[int, ...]:
        """How many each time."""

    @property
    def error(self) -> str | None:
        """Why it has no answer."""


def request_latencies(requests: Sequence[Completed]) -> RequestLatencies:
    """Latencies by request."""

    def of(figure: Callable[[Completed], float | None]) -> list[float | None]:
        return [None if is_failed(request) else figure(request) for request in requests]

    return RequestLatencies(ttft_ms=of(_ttft), tpot_ms=of(_tpot), e2e_ms=of(_e2e))


def load_figures(requests: Sequence[Completed]) -> LoadFigures:
    """Figures of the requests that count: those after the warm-up, one of them at least without an error."""
    completed = [request for request in requests if not is_failed(request)]
    if not completed:
        raise ValueError("no request was completed")
    start = min(request.scheduled_s for request in requests)
    duration = max(request.token_times_s[-1] for request in completed) - start
    latencies = request_latencies(completed)
    gaps, owners = _gaps(completed)
    return LoadFigures(
        requests=len(requests),
        completed=len(completed),
        duration_s=duration,
        requests_per_s=len(completed) / duration,
        input_tokens_per_s=sum(request.prompt_tokens for request in completed) / duration,
        output_tokens_per_s=sum(sum(request.token_counts) for request in completed) / duration,
        ttft=percentiles(latencies.ttft_ms),
        tpot=percentiles(latencies.tpot_ms),
        itl=percentiles(gaps, owners),
        e2e=percentiles(latencies.e2e_ms),
    )


def is_failed(request: Completed) -> bool:
    """Whether a request got no whole answer."""
    return request.error is not None or not request.token_times_s


def percentiles(values: Sequence[float | None], places: Sequence[int] | None = None) -> Percentiles:
    """The percentiles of values in the order of their requests' arrival; None are left out.

    places: the place in that order of the request that each value belongs to, where a request has several.
    """
    places = range(len(values)) if places is None else places
    found = [(value, place) for value, place in zip(values, places, strict=True) if value is not None]
    kept, of_kept = [value for value, _ in found], [place for _, place in found]
    return Percentiles(**{name: percentile(kept, level, of_kept) for name, level in LEVELS.items()})


def percentile(values: Sequence[float], level: float, places: Sequence[int]) -> Percentile:
    """A percentile as `numpy.percentile` interpolates it, with the 95 % interval between two order statistics.

    The ends are the values of those ranks that as many independent values fall below or above with a probability of at
    most 2.5 %, by the binomial distribution (as of a sign test). Requests that follow each other wait in one queue, so
    that values count as so many as tell the same (`effective_trials` over blocks of them) of the share that is below
    the percentile, and the ranks are those of that binomial's shares (Woodruff 1952).
    """
    requests = sorted(set(places))
    named, least = f"a percentile of {100 * level:g}", least_requests(level)
    if len(requests) < least:
        names = ("value_ms", "low_ms", "high_ms")
        reason = f"{named} needs {least} requests, of which {len(requests)} tell of it"
        return Percentile(value_ms=None, low_ms=None, high_ms=None, reasons=dict.fromkeys(names, reason))
    ordered = sorted(values)
    at = level * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    value = ordered[below] + (at - below) * (ordered[above] - ordered[below])
    block = dict(zip(requests, blocks(len(requests)), strict=True))
    trials = effective_trials([float(each <= value) for each in values], [block[place] for place in places])
    trials = max(1, math.floor(trials))
    ends = _ends(ordered, level, trials)
    reason = f"{named} whose interval has this end needs {least_for_interval(level)} independent requests"
    reason += f", and these {len(requests)}, which share a queue, tell as much as {min(trials, len(requests))}"
    return Percentile(
        value_ms=value,
        # The percentile is between two values, and an end may be the nearer of them.
        low_ms=None if ends[0] is None else min(ends[0], value),
        high_ms=None if ends[1] is None else max(ends[1], value),
        reasons={name: reason for name, end in zip(("low_ms", "high_ms"), ends, strict=True) if end is None},
    )


def blocks(requests: int) -> list[int]:
    """The block of each of so many requests in the order of arrival: ten of about one length, fewer of few requests."""
    count = min(_BLOCKS, requests)
    return [place * count // requests for place in range(requests)]


def least_requests(level: float) -> int:
    """Requests without which a percentile is not told: as many as let one lie beyond it on average."""
    return math.ceil(round(1 / min(level, 1 - level), 9))


def least_for_interval(level: float) -> int:
    """Requests without which no interval has both ends: all of fewer may lie on one side of the percentile."""
    return math.ceil(math.log(_OUTSIDE) / math.log(max(level, 1 - level)))


def _ends(ordered: Sequence[float], level: float, trials: int) -> tuple[float | None, float | None]:
    """The values at the ends of the interval, if they told as much as so many; None where none is sure enough."""
    from scipy.stats import binom

    # That the value of rank r lies above the percentile is that fewer than r of the values lie below it.
    low = int(binom.ppf(_OUTSIDE, trials, level))
    high = int(binom.ppf(1 - _OUTSIDE, trials, level)) + 1
    # In whole numbers: a quotient that is rounded up may lead past the last value.
    return (
        ordered[(low - 1) * len(ordered) // trials] if low >= 1 else None,
        ordered[-(-high * len(ordered) // trials) - 1] if high <= trials else None,
    )


def _gaps(requests: Sequence[Completed]) -> tuple[list[float | None], list[int]]:
    """Times between arrivals of tokens in ms, and the place of the request that each belongs to."""
    gaps: list[float | None] = []
    owners: list[int] = []
    for place, request in enumerate(requests):
        times = request.token_times_s
        gaps += [1000 * (after - before) for before, after in pairwise(times)]
        owners += [place] * (len(times) - 1)
    return gaps, owners


def _ttft(request: Completed) -> float:
    return 1000 * (request.token_times_s[0] - request.scheduled_s)


def _e2e(request: Completed) -> float:
    return 1000 * (request.token_times_s[-1] - request.scheduled_s)


def _tpot(request: Completed) -> float | None:
    """Tokens that come together with the first took no time after it, and are no tokens after it."""
    later = sum(request.token_counts[1:])
    return 1000 * (request.token_times_s[-1] - request.token_times_s[0]) / later if later else None
