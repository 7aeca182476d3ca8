"""Integrals and differences of irregularly sampled readings.

Every function takes `times` (seconds, not decreasing, shape (n,)) and `values` (shape (n,)) as arrays.
Between two readings a gauge is taken to run straight from one to the other, which makes the integral
trapezoidal and independent of how densely a stretch happened to be sampled. An equal-weight mean of the
samples is not.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


class CounterReset(ValueError):
    """A counter that never wraps went backwards, so differences across that point mean nothing."""


def clip(times: ArrayLike, values: ArrayLike, start: float, end: float) -> tuple[NDArray, NDArray]:
    """The readings within [start, end], with a value interpolated at both bounds.

    Beyond the first and last reading the nearest one is held. Returns (times, values), each of shape (m,), m
    >= 2. Raises ValueError when there is no reading at all or `end` is before `start`.
    """
    times, values = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    if times.size == 0:
        raise ValueError("there is no reading to integrate")
    if end < start:
        raise ValueError(f"the interval ends at {end} s, before it starts at {start} s")
    inside = (times > start) & (times < end)
    at_bounds = np.interp([start, end], times, values)
    return (
        np.concatenate([[start], times[inside], [end]]),
        np.concatenate([at_bounds[:1], values[inside], at_bounds[1:]]),
    )


def integral(times: ArrayLike, values: ArrayLike, start: float, end: float) -> float:
    """Integral of `values` over [start, end], in the unit of `values` times seconds (see `clip` for errors)."""
    t, v = clip(times, values, start, end)
    return float(np.trapezoid(v, t))


def time_average(times: ArrayLike, values: ArrayLike, start: float, end: float) -> float:
    """(1/T) times the integral of `values` over [start, end]; over an instant, the value there."""
    if end == start:
        return float(clip(times, values, start, end)[1][0])
    return integral(times, values, start, end) / (end - start)


def counter_increase(values: ArrayLike, wraps_at: float | None = None) -> float:
    """How far a counter rose over consecutive readings, shape (n,), n >= 1.

    A fall is one wrap past `wraps_at`; readings must therefore lie closer than one turn of the counter.
    Raises CounterReset for a fall of a counter that does not wrap.
    """
    steps = np.diff(np.asarray(values, dtype=float))
    if (steps < 0).any():
        if wraps_at is None:
            raise CounterReset(f"the counter fell by {-steps.min():g}")
        steps = np.where(steps < 0, steps + wraps_at, steps)
    return float(steps.sum())


def unreadable_time(times: ArrayLike, values: ArrayLike, start: float, end: float) -> float:
    """Seconds of [start, end] for which the latest reading was a failed one (NaN)."""
    times, values = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    edges = np.clip(np.append(times, end), start, end)
    return float(np.diff(edges)[np.isnan(values)].sum())


def starved_time(times: ArrayLike, start: float, end: float, allowed_gap: float) -> float:
    """Seconds by which gaps between readings in [start, end] exceed `allowed_gap`, the bounds counting as readings."""
    times = np.asarray(times, dtype=float)
    marks = np.concatenate([[start], times[(times > start) & (times < end)], [end]])
    return float(np.clip(np.diff(marks) - allowed_gap, 0, None).sum())
