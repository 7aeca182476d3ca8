"""Axes of charts: from values to pixels, with ticks at round numbers; logarithmic where values span more than 10x."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LOG_BEYOND = 10.0
_PADDING = 0.08
_MOST_TICKS = 6
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_STEPS = ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))


@dataclass(frozen=True)
class Scale:
    """Maps `low` to the pixel `begin` and `high` to `end`; what lies outside is put at the edge."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Pixel of a value."""
        if value <= self.low:
            return self.begin
        if value >= self.high:
            return self.end
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def holds(self, value: float) -> bool:
        """Whether the value lies on the axis."""
        return self.low <= value <= self.high

    def ticks(self) -> list[float]:
        """Round values on the axis, two at least where the axis admits them."""
        if self.is_log:
            ticks = self._log_ticks()
            if len(ticks) > 1:
                return ticks
        return self._linear_ticks()

    def _linear_ticks(self) -> list[float]:
        span = self.high - self.low
        magnitude = 10.0 ** math.floor(math.log10(span / _MOST_TICKS))
        step = next(factor * magnitude for factor in _STEPS if span / (factor * magnitude) <= _MOST_TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{index * step:.12g}") for index in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in _LOG_STEPS:
            ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
            ticks = [tick for tick in ticks if self.holds(tick)]
            if len(ticks) <= _MOST_TICKS:
                return ticks
        return ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]


def scale_of(
    values: Sequence[float], reach: Sequence[float], begin: float, end: float, may_be_log: bool = True
) -> Scale:
    """The scale on which `values` and their intervals' ends (`reach`) lie, with some room to both sides.

    Logarithmic if it may be, every value is above 0 and the largest is more than ten times the smallest. Ends of
    intervals that a logarithmic axis cannot show (0 and below) are left to its edge.
    """
    is_log = may_be_log and min(values) > 0 and max(values) > _LOG_BEYOND * min(values)
    shown = [*values, *(value for value in reach if value > 0 or not is_log)]
    low, high = min(shown), max(shown)
    if is_log:
        # An interval that almost reaches 0 would leave no room for the marks.
        low = max(low, min(values) / _LOG_BEYOND)
        room = (high / low) ** _PADDING
        return Scale(low / room, high * room, begin, end, is_log=True)
    room = _PADDING * ((high - low) or abs(high) or 1.0)
    return Scale(low - room, high + room, begin, end)
