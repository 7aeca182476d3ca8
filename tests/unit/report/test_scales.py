"""Axes: order is kept, ticks are round and on the axis, and beyond ten times an axis is logarithmic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllm.report.scales import scale_of

NUMBERS = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-6)
VALUES = st.lists(NUMBERS, min_size=1, max_size=20)


@given(VALUES)
def test_larger_values_are_further_along_the_axis(values: list[float]) -> None:
    scale = scale_of(values, values, 50, 320)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(50 <= place <= 320 for place in places)


@given(VALUES)
def test_ticks_are_on_the_axis_in_order_and_few(values: list[float]) -> None:
    scale = scale_of(values, values, 50, 320)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(scale.low - abs(scale.low) * 1e-9 <= tick <= scale.high + abs(scale.high) * 1e-9 for tick in ticks)


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=9))
def test_an_axis_is_logarithmic_exactly_beyond_ten_times(values: list[float]) -> None:
    assert scale_of(values, values, 0, 1).is_log == (max(values) > 10 * min(values))
    assert not scale_of(values, values, 0, 1, may_be_log=False).is_log
    assert not scale_of([0.0, *values], values, 0, 1).is_log


def test_a_logarithmic_axis_gives_equal_ratios_equal_lengths() -> None:
    scale = scale_of([1, 10, 100, 1000], [], 0, 300)
    one, ten, hundred = (scale.place(value) for value in (1, 10, 100))
    assert ten - one == pytest.approx(hundred - ten)
    assert scale.ticks() == [1, 10, 100, 1000]


def test_an_interval_down_to_zero_ends_at_the_edge_of_a_logarithmic_axis() -> None:
    scale = scale_of([1, 50], [0.0, 0.001, 60.0], 0, 300)
    assert scale.is_log and scale.place(0.0) == scale.place(0.001) == 0
    assert math.isclose(scale.place(scale.high), 300)


def test_ticks_of_a_linear_axis_are_round() -> None:
    assert scale_of([0, 100], [], 0, 1, may_be_log=False).ticks() == [0, 20, 40, 60, 80, 100]
    assert scale_of([0.448, 0.622], [], 0, 1).ticks() == [0.45, 0.5, 0.55, 0.6]
