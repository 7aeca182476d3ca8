"""Requests that meet an objective, and the largest rate at which enough of them do."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from effllm.results.latency import RequestLatencies
from effllm.serving.slo import MeasuredRate, Slo, largest_rate, requests_that_meet, share_interval


def _rate(rate: float, share: float, requests: int = 100) -> MeasuredRate:
    """Requests of which a share met it, spread evenly."""
    return MeasuredRate(rate, [(place + 1) * share // 1 > place * share // 1 for place in range(requests)])


def test_a_request_meets_every_limit_or_none() -> None:
    latencies = RequestLatencies(
        ttft_ms=[100, 300, 100, None, 90], tpot_ms=[20, 20, 60, None, None], e2e_ms=[500, 700, 900, None, 90]
    )
    assert requests_that_meet(Slo(ttft_ms=200, tpot_ms=50), latencies) == [True, False, False, False, True]
    assert requests_that_meet(Slo(e2e_ms=700), latencies) == [True, True, False, False, True]
    with pytest.raises(ValidationError, match="it has no limit: state ttft_ms, tpot_ms or e2e_ms"):
        Slo(share=0.5)


def test_the_largest_rate_lies_on_the_line_between_two_measured_ones() -> None:
    measured = [_rate(8, 0.5), _rate(2, 1.0), _rate(4, 0.96), _rate(16, 0.1)]
    found = largest_rate(Slo(e2e_ms=1, share=0.9), measured)
    # From 0.96 at 4 to 0.5 at 8.
    assert found.rate_per_s == pytest.approx(np.interp(-0.9, [-0.96, -0.5], [4, 8]))
    assert found.between == (4, 8)
    assert found.low is not None and found.high is not None and found.rate_per_s is not None
    assert found.low < found.rate_per_s < found.high
    assert not found.reasons


def test_it_stops_at_the_first_rate_that_misses() -> None:
    found = largest_rate(Slo(e2e_ms=1), [_rate(1, 1.0), _rate(2, 0.5), _rate(3, 0.95), _rate(4, 0.2)])
    assert found.between == (1, 2) and found.rate_per_s == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ((0.8, 0.2), "already at the lowest, 1 requests/s, fewer than 90 % of the requests meet it"),
        ((1.0, 0.95), "up to the highest, 2 requests/s, 90 % of the requests meet it"),
        ((), "none that counts was measured"),
    ],
)
def test_nothing_is_extrapolated(shares: tuple[float, ...], reason: str) -> None:
    found = largest_rate(Slo(e2e_ms=1), [_rate(place, share) for place, share in enumerate(shares, start=1)])
    assert (found.rate_per_s, found.low, found.high, found.between) == (None, None, None, None)
    assert found.reasons["rate_per_s"] == f"not within the measured rates: {reason}"


def test_an_interval_that_reaches_beyond_the_rates_has_no_end_there() -> None:
    found = largest_rate(Slo(e2e_ms=1), [_rate(1, 0.91), _rate(2, 0.2)])
    assert found.rate_per_s is not None and found.low is None and found.high is not None
    assert found.reasons == {"low": "the interval reaches below the lowest measured rate, 1 requests/s"}


def test_rates_at_which_all_requests_are_alike_leave_a_width() -> None:
    found = largest_rate(Slo(e2e_ms=1), [_rate(1, 1.0), _rate(2, 0.0)])
    assert found.rate_per_s == pytest.approx(1.1)
    assert found.low is not None and found.high is not None and found.high - found.low > 0.02


@pytest.mark.parametrize("falls", [(0.98, 0.8, 0.3), (1.0, 0.93, 0.6)])
def test_the_interval_covers_the_rate_on_the_true_line(falls: tuple[float, ...]) -> None:
    rates, share = [1.0, 2.0, 3.0], 0.9
    truth = float(np.interp(-share, [-fall for fall in falls], rates))
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(150):
        drawn: list[Any] = [(generator.random(200) < fall).tolist() for fall in falls]
        found = largest_rate(
            Slo(e2e_ms=1, share=share), [MeasuredRate(rate, met) for rate, met in zip(rates, drawn, strict=True)]
        )
        covered += (found.low or 0.0) <= truth <= (found.high or np.inf)
    assert covered >= 138


def test_the_share_has_wilsons_interval() -> None:
    low, high = share_interval(_rate(1, 0.9).met)
    # statsmodels' proportion_confint(90, 100, method="wilson")
    assert (low, high) == pytest.approx((0.8256343, 0.9447708), abs=1e-6)
    # One stretch of the requests failed as a whole, which is told once and not ten times.
    assert share_interval([False] * 10 + [True] * 90)[0] < 0.7
