"""The metric functions: the equations on worked examples, and properties that hold for all inputs."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from effllm.telemetry import metrics
from effllm.telemetry.integrate import CounterReset, counter_increase, integral, starved_time, time_average
from effllm.telemetry.peaks import PEAKS

levels = st.floats(0, 1e6, allow_subnormal=False)
gaps = st.floats(1e-3, 1e3)


@st.composite
def series(draw):
    """(times, values) of an irregularly sampled gauge, 2 to 20 readings."""
    steps = draw(st.lists(gaps, min_size=1, max_size=19))
    times = np.concatenate([[0.0], np.cumsum(steps)])
    return times, np.array(draw(st.lists(levels, min_size=len(times), max_size=len(times))))


counts = st.lists(st.integers(1, 10**9), min_size=1, max_size=20)
durations = st.lists(st.floats(1e-3, 1e4), min_size=20, max_size=20)


def average(times, values):
    """Over all the time of the readings: what AMU (Eq 1), PCU and AEC are of memory, utilisation and power."""
    return time_average(times, values, times[0], times[-1])


def test_averages_weigh_by_time_as_equation_1_does():
    # 10 GB for 9 s, then a ramp to 30 GB within 1 s.
    assert average([0, 9, 10], [10, 10, 30]) == pytest.approx(11.0)
    assert average([0, 1, 4], [100, 300, 300]) == pytest.approx(275.0)


def test_tt_st_and_it_divide_sums_not_means():
    assert metrics.token_throughput([100, 300], 50, [1, 3]) == pytest.approx(2.0)
    assert metrics.sample_throughput([4, 4], 2, [1, 1]) == pytest.approx(2.0)
    # The mean of the two rates would be 55.
    assert metrics.inference_throughput([100, 10], [1, 1]) == pytest.approx(55.0)
    assert metrics.inference_throughput([100, 10], [1, 10]) == pytest.approx(10.0)


def test_mcr_multiplies_size_ratio_and_kept_performance():
    assert metrics.model_compression_rate(16, 4, 0.5, 0.45) == pytest.approx(3.6)


def test_mfu_and_mbu_use_the_peak_of_exactly_that_device():
    assert metrics.model_flops_utilization(989e12, 2.0, "NVIDIA H200", "bfloat16") == pytest.approx(0.5)
    assert metrics.model_bandwidth_utilization(4.8e12, 4.0, "NVIDIA H200") == pytest.approx(0.25)
    assert metrics.model_flops_utilization(1e12, 1.0, "NVIDIA H200 NVL", "bfloat16") is None
    assert metrics.model_flops_utilization(1e12, 1.0, "NVIDIA H200", "float32") is None
    assert metrics.model_bandwidth_utilization(1e12, 1.0, "cpu") is None


def test_peaks_agree_with_the_dense_figures_of_the_data_sheets():
    assert {PEAKS[n].half_flops_per_s for n in ("NVIDIA H200", "NVIDIA GH200 480GB")} == {989e12}
    assert PEAKS["NVIDIA H100 PCIe"].half_flops_per_s == 756e12
    assert PEAKS["NVIDIA A100-SXM4-80GB"].half_flops_per_s == 312e12


def test_energy_that_was_not_measured_stays_unmeasured():
    assert metrics.energy_per_token_j(None, 10) is None
    assert metrics.energy_per_token_j(50.0, 10) == pytest.approx(5.0)
    assert metrics.energy_above_idle_j(1000.0, 10.0, 60.0) == pytest.approx(400.0)
    assert metrics.energy_above_idle_j(1000.0, 10.0, None) is None


def test_ci95_is_students_interval():
    # t(0.975, 4) = 2.7764; s = 1.5811; half = 2.7764 * 1.5811 / sqrt(5) = 1.9632
    mean, low, high = metrics.mean_ci95([1, 2, 3, 4, 5])
    assert (mean, low, high) == (3.0, pytest.approx(3 - 1.96324, abs=1e-4), pytest.approx(3 + 1.96324, abs=1e-4))
    assert metrics.mean_ci95([7.0]) == (7.0, None, None)


def test_percentiles_of_latency():
    assert metrics.latency_percentiles_ms(range(101)) == {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.token_throughput([1], 0, [1]),
        lambda: metrics.token_throughput([1, 2], 1, [1]),
        lambda: metrics.inference_throughput([5], [0.0]),
        lambda: metrics.model_compression_rate(1, 0, 1, 1),
        lambda: metrics.energy_per_token_j(1.0, 0),
        lambda: metrics.mean_ci95([]),
    ],
)
def test_arguments_that_make_no_sense_are_refused(call):
    with pytest.raises(ValueError):
        call()


@given(series())
def test_an_average_lies_between_the_extremes(readings):
    times, values = readings
    mean = average(times, values)
    assert values.min() * (1 - 1e-9) - 1e-9 <= mean <= values.max() * (1 + 1e-9) + 1e-9


@given(series(), st.floats(0.01, 0.99))
def test_an_average_does_not_change_when_a_stretch_is_sampled_more_densely(readings, where):
    times, values = readings
    extra_t = times[0] + where * (times[-1] - times[0])
    assume(np.abs(times - extra_t).min() > 1e-9)
    extra_v = np.interp(extra_t, times, values)
    at = np.searchsorted(times, extra_t)
    denser = average(np.insert(times, at, extra_t), np.insert(values, at, extra_v))
    assert denser == pytest.approx(average(times, values), rel=1e-9, abs=1e-9)


@given(series(), st.floats(1e-3, 1e3), st.floats(-1e4, 1e4))
def test_an_average_scales_with_units_and_ignores_the_origin_of_time(readings, scale, shift):
    times, values = readings
    expected = scale * average(times, values)
    moved = average(times + shift, scale * values)
    assert moved == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # W over ms, with time in ms too, is the same average.
    assert average(times * 1e3, values) * scale == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(series(), st.floats(0, 1))
def test_an_integral_is_the_sum_of_its_parts(readings, where):
    times, values = readings
    start, end = times[0], times[-1]
    middle = start + where * (end - start)
    parts = integral(times, values, start, middle) + integral(times, values, middle, end)
    assert parts == pytest.approx(integral(times, values, start, end), rel=1e-9, abs=1e-6)


@given(counts, durations, st.integers(1, 10**12))
def test_throughputs_are_bounded_by_the_fastest_and_slowest_iteration(tokens, times, parameters):
    times = times[: len(tokens)]
    rates = [n / parameters / t for n, t in zip(tokens, times, strict=True)]
    throughput = metrics.token_throughput(tokens, parameters, times)
    assert min(rates) * (1 - 1e-9) <= throughput <= max(rates) * (1 + 1e-9)
    assert throughput * parameters == pytest.approx(metrics.inference_throughput(tokens, times), rel=1e-9)


@given(counts, durations)
def test_throughput_is_unchanged_when_the_run_is_repeated(tokens, times):
    times = times[: len(tokens)]
    once = metrics.inference_throughput(tokens, times)
    assert metrics.inference_throughput(tokens * 3, times * 3) == pytest.approx(once, rel=1e-9)


@given(st.floats(1, 1e12), st.floats(1, 1e12), st.floats(0.01, 1), st.floats(0.01, 1))
def test_compressing_there_and_back_has_rate_one(size_a, size_b, score_a, score_b):
    there = metrics.model_compression_rate(size_a, size_b, score_a, score_b)
    back = metrics.model_compression_rate(size_b, size_a, score_b, score_a)
    assert there * back == pytest.approx(1.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.floats(-1e3, 1e3))
def test_the_interval_holds_its_mean_and_moves_with_the_data(values, shift):
    mean, low, high = metrics.mean_ci95(values)
    assert low <= mean <= high
    assert metrics.mean_ci95([v + shift for v in values])[0] == pytest.approx(mean + shift, abs=1e-6)


@given(st.lists(st.floats(0, 90), min_size=1, max_size=50), st.floats(0, 99))
def test_a_wrapping_counter_rises_by_what_was_added(steps, first):
    values = np.mod(first + np.concatenate([[0.0], np.cumsum(steps)]), 100.0)
    assert counter_increase(values, wraps_at=100.0) == pytest.approx(math.fsum(steps), abs=1e-6)


def test_a_counter_that_falls_without_wrapping_is_a_reset():
    with pytest.raises(CounterReset, match="fell by 7"):
        counter_increase([5, 9, 2, 30])


def test_starved_time_counts_only_what_exceeds_the_allowed_gap():
    assert starved_time([1, 2, 6, 7], 0, 8, allowed_gap=1.5) == pytest.approx(2.5)
    assert starved_time([], 0, 8, allowed_gap=3) == pytest.approx(5)


def test_averaging_nothing_is_an_error_not_zero():
    with pytest.raises(ValueError, match="no reading"):
        time_average([], [], 0, 1)
