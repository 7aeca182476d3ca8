"""Service level objectives: the requests that meet one, and the largest rate at which enough of them do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from effllm.fields import Fraction, PositiveFloat, Section
from effllm.intervals import effective_trials, wilson_interval
from effllm.results.latency import RequestLatencies
from effllm.serving.latency import blocks

if TYPE_CHECKING:
    import numpy as np

_DRAWS = 4000
_SEED = 0


class Slo(Section):
    """Latencies that a request is promised, and the share of the requests for which that must hold."""

    ttft_ms: PositiveFloat | None = Field(default=None, description="Longest time to the first token in ms.")
    tpot_ms: PositiveFloat | None = Field(default=None, description="Longest time of a token after the first in ms.")
    e2e_ms: PositiveFloat | None = Field(default=None, description="Longest time to the last token in ms.")
    share: Annotated[Fraction, Field(gt=0)] = Field(
        default=0.9, description="Share of the requests that must stay within every limit."
    )

    @model_validator(mode="after")
    def _promises_something(self) -> "Slo":
        if not self.limits:
            raise ValueError("it has no limit: state ttft_ms, tpot_ms or e2e_ms")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """The limits in ms by latency."""
        return {name: limit for name in RequestLatencies.model_fields if (limit := getattr(self, name)) is not None}


@dataclass(frozen=True)
class MeasuredRate:
    """The requests of one rate in the order of arrival: whether each met the objective."""

    rate_per_s: float
    met: Sequence[bool]

    @property
    def share(self) -> float:
        """Share of the requests that met it."""
        return sum(self.met) / len(self.met)


@dataclass(frozen=True)
class LargestRate:
    """The largest rate that meets an objective, in requests/s; None with `reasons` by field.

    low, high: its 95 % interval. between: the two measured rates between which it was interpolated.
    """

    rate_per_s: float | None
    low: float | None
    high: float | None
    between: tuple[float, float] | None
    reasons: dict[str, str]


def requests_that_meet(slo: Slo, latencies: RequestLatencies) -> list[bool]:
    """Of each request, whether it stayed within every limit; one that failed did not."""
    columns = [(getattr(latencies, name), limit) for name, limit in slo.limits.items()]
    # A request of one token has no time of a token after it, and keeps that promise.
    return [
        ended is not None and all(values[place] is None or values[place] <= limit for values, limit in columns)
        for place, ended in enumerate(latencies.e2e_ms)
    ]


def share_interval(met: Sequence[bool]) -> list[float]:
    """95 % interval of the share of requests that meet an objective; those that follow each other share a queue."""
    trials = _trials(met)
    return wilson_interval(sum(met) / len(met) * trials, trials)


def largest_rate(slo: Slo, measured: Sequence[MeasuredRate]) -> LargestRate:
    """Where the share of requests that meet the objective falls below the one wanted, between two measured rates.

    Linear between the last rate below which every rate meets it and the next. Never beyond the measured rates. The
    interval is of the requests that happened to come, not of the curve between the two rates: shares of all rates are
    drawn again from their posteriors (Jeffreys' prior, and as many independent requests as tell the same). Unlike
    drawing the requests again, that leaves a width where all of them were alike.
    """
    import numpy as np

    ordered = sorted(measured, key=lambda rate: rate.rate_per_s)
    rates = [rate.rate_per_s for rate in ordered]
    if not rates:
        return _absent("not within the measured rates: none that counts was measured")
    shares = np.array([[rate.share for rate in ordered]])
    found = float(_crossings(rates, shares, slo.share)[0])
    if not math.isfinite(found):
        wanted = f"{100 * slo.share:g} % of the requests"
        reason = (
            f"already at the lowest, {rates[0]:.4g} requests/s, fewer than {wanted} meet it"
            if found < 0
            else f"up to the highest, {rates[-1]:.4g} requests/s, {wanted} meet it"
        )
        return _absent(f"not within the measured rates: {reason}")
    generator = np.random.default_rng(_SEED)
    trials = [_trials(rate.met) for rate in ordered]
    drawn = [
        generator.beta(rate.share * count + 0.5, (1 - rate.share) * count + 0.5, _DRAWS)
        for rate, count in zip(ordered, trials, strict=True)
    ]
    crossings = np.sort(_crossings(rates, np.stack(drawn, axis=1), slo.share))
    low, high = float(crossings[int(0.025 * _DRAWS)]), float(crossings[math.ceil(0.975 * _DRAWS) - 1])
    ends = {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}
    beyond = {"low": f"below the lowest measured rate, {rates[0]:.4g}", "high": f"above the highest, {rates[-1]:.4g}"}
    above = next(place for place, rate in enumerate(ordered) if rate.share < slo.share)
    return LargestRate(
        found,
        None if ends["low"] is None else min(ends["low"], found),
        None if ends["high"] is None else max(ends["high"], found),
        (rates[above - 1], rates[above]),
        {name: f"the interval reaches {beyond[name]} requests/s" for name, end in ends.items() if end is None},
    )


def _absent(reason: str) -> LargestRate:
    return LargestRate(None, None, None, None, dict.fromkeys(("rate_per_s", "low", "high", "between"), reason))


def _trials(met: Sequence[bool]) -> float:
    """How many independent requests tell as much; each one of those that all fare alike."""
    if len(set(met)) == 1:
        return len(met)
    return effective_trials([float(one) for one in met], blocks(len(met)))


def _crossings(rates: Sequence[float], shares: "np.ndarray", wanted: float) -> "np.ndarray":
    """Of each row of shares by rate, the rate at which it falls below `wanted` first.

    Minus infinity where the lowest rate is below it already, infinity where none is.
    """
    import numpy as np

    misses = shares < wanted
    # The column of the first miss; of a row without one, 0, which is put right at the end.
    first = misses.argmax(axis=1)
    before = np.maximum(first - 1, 0)
    row = np.arange(len(shares))
    share, share_before, at = shares[row, first], shares[row, before], np.array(rates)
    fall = np.where(first > 0, share_before - share, 1.0)
    found = at[before] + (share_before - wanted) / fall * (at[first] - at[before])
    return np.where(~misses.any(axis=1), np.inf, np.where(first == 0, -np.inf, found))
