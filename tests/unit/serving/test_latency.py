"""Latencies count from the scheduled arrival; percentiles have the intervals that order statistics give them."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from effllm.serving.latency import (
    LEVELS,
    _ends,
    least_for_interval,
    least_requests,
    load_figures,
    percentile,
    percentiles,
    request_latencies,
)


@dataclass(frozen=True)
class _Request:
    scheduled_s: float
    token_times_s: tuple[float, ...]
    token_counts: tuple[int, ...]
    prompt_tokens: int = 10
    error: str | None = None


def test_latencies_count_from_the_scheduled_arrival() -> None:
    requests = [
        # Sent late or not, it was to arrive at 1 s.
        _Request(1.0, (1.5, 1.6, 1.9), (1, 1, 2)),
        _Request(2.0, (2.25,), (1,)),
        _Request(2.5, (3.0,), (1,), error="the server closed the connection"),
        _Request(3.0, (3.5, 5.0), (2, 1), prompt_tokens=30),
    ]
    latencies = request_latencies(requests)
    assert latencies.ttft_ms == pytest.approx([500, 250, None, 500])
    # Tokens that come with the first are none after it.
    assert latencies.tpot_ms == pytest.approx([400 / 3, None, None, 1500])
    assert latencies.e2e_ms == pytest.approx([900, 250, None, 2000])
    figures = load_figures(requests)
    assert (figures.requests, figures.completed, figures.duration_s) == (4, 3, pytest.approx(4))
    assert figures.requests_per_s == pytest.approx(3 / 4)
    assert figures.input_tokens_per_s == pytest.approx(50 / 4)
    assert figures.output_tokens_per_s == pytest.approx(8 / 4)
    assert figures.itl.p50.value_ms == pytest.approx(300)
    assert figures.ttft.p50.value_ms == pytest.approx(500)


@pytest.mark.parametrize("level", LEVELS.values())
@pytest.mark.parametrize("requests", [10, 40, 100, 400, 1000])
def test_intervals_of_independent_requests_are_those_of_the_quantile_test(level: float, requests: int) -> None:
    # Every block has as many below and above as another, so that nothing is seen of a queue.
    size = requests // 10
    values = [float(rank * 10 + block) ** 1.5 for block in range(10) for rank in range(size)]
    found = percentile(values, level, range(requests))
    expected = stats.quantile_test(values, p=level).confidence_interval(0.95)
    if requests < least_requests(level):
        assert found.value_ms is None
        assert found.cell("value_ms")[1] == (
            f"a percentile of {100 * level:g} needs {least_requests(level)} requests, of which {requests} tell of it"
        )
        return
    assert found.value_ms == pytest.approx(np.percentile(values, 100 * level))
    assert found.low_ms == expected.low
    assert found.high_ms == (None if np.isnan(expected.high) else expected.high)
    if found.high_ms is None:
        assert f"needs {least_for_interval(level)} independent requests" in (found.cell("high_ms")[1] or "")


def test_intervals_end_within_what_was_measured() -> None:
    """Whatever the number of values and of independent ones among them; 19 of 21 once led past the last."""
    for count in range(2, 60):
        values = [float(value) for value in range(count)]
        for trials in range(1, count + 1):
            low, high = _ends(values, 0.5, trials)
            assert low is None or high is None or 0 <= low <= high <= count - 1


def test_least_numbers_are_those_at_which_an_interval_has_two_ends() -> None:
    assert [least_requests(level) for level in LEVELS.values()] == [2, 10, 100]
    for level in LEVELS.values():
        least = least_for_interval(level)
        ends = [stats.quantile_test(range(n), p=level).confidence_interval(0.95) for n in (least - 1, least)]
        assert [bool(np.isfinite([end.low, end.high]).all()) for end in ends] == [False, True]


def _queue(load: float, requests: int, generator: np.random.Generator) -> list[float]:
    """Times in a queue with one server and exponential gaps and services, in its steady state."""
    gaps, services = generator.exponential(1 / load, requests), generator.exponential(1, requests)
    wait = generator.exponential(1 / (1 - load)) if generator.random() < load else 0.0
    found = []
    for gap, service in zip(gaps, services, strict=True):
        found.append(wait + service)
        wait = max(0.0, wait + service - gap)
    return found


def test_intervals_hold_where_requests_wait_for_each_other() -> None:
    generator = np.random.default_rng(4)
    # Times in this queue are exponential.
    truth = -np.log(0.5) / (1 - 0.5)
    covered = {"in blocks": 0, "as if independent": 0}
    for _ in range(120):
        values = _queue(0.5, 400, generator)
        found = percentile(values, 0.5, range(400))
        assert found.low_ms is not None and found.high_ms is not None
        covered["in blocks"] += found.low_ms <= truth <= found.high_ms
        plain = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
        covered["as if independent"] += bool(plain.low <= truth <= plain.high)
    assert covered["in blocks"] >= 106
    assert covered["as if independent"] < 98


def test_gaps_of_one_request_go_together() -> None:
    generator = np.random.default_rng(0)
    # Each of 50 requests has its own pace, and all of its gaps are nearly alike.
    paces = generator.exponential(10, 50)
    gaps = [float(pace + noise) for pace in paces for noise in generator.normal(0, 0.01, 40)]
    places = [place for place in range(50) for _ in range(40)]
    together, alone = percentiles(gaps, places).p50, percentiles(list(paces)).p50
    assert together.value_ms == pytest.approx(float(np.median(gaps)))
    assert together.low_ms == pytest.approx(alone.low_ms, abs=1.5)
    assert together.high_ms == pytest.approx(alone.high_ms, abs=1.5)
    assert percentiles(gaps, places).p99.value_ms is None
