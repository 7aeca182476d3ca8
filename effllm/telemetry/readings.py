"""Readings of one quantity over a session, and what can honestly be said about them over a set of segments."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from effllm.telemetry.integrate import counter_increase, integral, time_average, unreadable_time
from effllm.telemetry.windows import Segment

# A figure stands when its sensor could not be read for at most this share of the time.
_UNREADABLE_SHARE = 0.05
# Reading takes milliseconds in each of two processes, so their order is unknown when they lie this close.
_EDGE_MARGIN_S = 0.05

_Reading = tuple[int, float]


class NotMeasured(Exception):
    """A figure that cannot be given; the message is the reason, shown to the user."""


class Readings:
    """Time (monotonic s) and value of every quantity read, from the sampler and at the edges of windows."""

    def __init__(self, load: Callable[[str, str], tuple[NDArray, NDArray]]):
        """`load(source, quantity)` returns times in ns and values, both of shape (n,), in any order."""
        self._load = load
        self._cache: dict[tuple[str, str], tuple[NDArray, NDArray]] = {}

    def series(self, source: str, quantity: str) -> tuple[NDArray, NDArray]:
        """(times in s, values), ordered by time; failed readings are NaN."""
        key = (source, quantity)
        if key not in self._cache:
            times_ns, values = self._load(source, quantity)
            order = np.argsort(times_ns, kind="stable")
            self._cache[key] = np.asarray(times_ns)[order] / 1e9, np.asarray(values, dtype=float)[order]
        return self._cache[key]

    def _readable(self, source: str, quantity: str, segments: Sequence[Segment]) -> tuple[NDArray, NDArray]:
        times, values = self.series(source, quantity)
        total_s = math.fsum(segment.duration_s for segment in segments)
        lost_s = math.fsum(unreadable_time(times, values, s.start_s, s.end_s) for s in segments)
        if lost_s > _UNREADABLE_SHARE * total_s or not np.isfinite(values).any():
            raise NotMeasured(f"{source} {quantity} could not be read for {lost_s:.3g} s of {total_s:.3g} s")
        good = np.isfinite(values)
        return times[good], values[good]

    def average(self, source: str, quantity: str, segments: Sequence[Segment]) -> float:
        """Average over time of a gauge, all segments together, in the quantity's unit."""
        times, values = self._readable(source, quantity, segments)
        total_s = math.fsum(segment.duration_s for segment in segments)
        parts = (time_average(times, values, s.start_s, s.end_s) * s.duration_s for s in segments)
        return math.fsum(parts) / total_s

    def integral(self, source: str, quantity: str, segments: Sequence[Segment]) -> float:
        """Integral over time of a gauge, in the quantity's unit times s."""
        times, values = self._readable(source, quantity, segments)
        return math.fsum(integral(times, values, s.start_s, s.end_s) for s in segments)

    def within(self, source: str, quantity: str, segments: Iterable[Segment], opening: bool = True) -> NDArray:
        """Readings made in the segments, shape (n,), those at their own edges included.

        `opening=False` leaves out the one at the start, for a quantity that tells about the time before it.
        """
        times, values = self.series(source, quantity)
        inside = np.zeros(len(times), dtype=bool)
        for segment in segments:
            after_start = times >= segment.start.first_read_ns / 1e9 if opening else times > segment.start_s
            inside |= after_start & (times <= segment.end.last_read_ns / 1e9)
        inside &= np.isfinite(values)
        if not inside.any():
            raise NotMeasured(f"{source} {quantity} was not read in these windows")
        return values[inside]

    def flag_shares(
        self, source: str, quantity: str, bits: Sequence[int], segments: Sequence[Segment]
    ) -> dict[int, float]:
        """Share of the segments' time in which each bit of a mask was set; a mask holds until the next reading."""
        times, values = self._readable(source, quantity, segments)
        masks = values.astype(np.int64)
        total_s = math.fsum(segment.duration_s for segment in segments)
        seconds = np.zeros(len(bits))
        for segment in segments:
            held_s = np.diff(np.clip(np.append(times, segment.end_s), segment.start_s, segment.end_s))
            seconds += [held_s[(masks & bit) != 0].sum() for bit in bits]
        return dict(zip(bits, (seconds / total_s).tolist(), strict=True))

    def difference(self, source: str, quantity: str, segments: Iterable[Segment]) -> float:
        """What a counter shows at the ends of the segments more than at their starts, in the quantity's unit."""
        return math.fsum(last - first for (_, first), (_, last) in self._edges(source, quantity, segments))

    def increase(self, source: str, quantity: str, wraps_at: float | None, segments: Iterable[Segment]) -> float:
        """How far a counter rose over the segments, in the quantity's unit, wraps included.

        The edges decide how far; samples in between tell about wraps and resets. Raises NotMeasured where an edge
        has no reading, and CounterReset where the counter fell without being one that wraps.
        """
        times, values = self.series(source, quantity)
        good = np.isfinite(values)
        times, values = times[good], values[good]
        total = []
        for (start_ns, first), (end_ns, last) in self._edges(source, quantity, segments):
            between = (times > start_ns / 1e9 + _EDGE_MARGIN_S) & (times < end_ns / 1e9 - _EDGE_MARGIN_S)
            total.append(counter_increase(np.concatenate([[first], values[between], [last]]), wraps_at))
        return math.fsum(total)

    @staticmethod
    def _edges(source: str, quantity: str, segments: Iterable[Segment]) -> Iterator[tuple[_Reading, _Reading]]:
        key = f"{source}.{quantity}"
        for segment in segments:
            if key not in segment.start.counters or key not in segment.end.counters:
                raise NotMeasured(f"{source} {quantity} could not be read at an edge of the window")
            yield segment.start.counters[key], segment.end.counters[key]
