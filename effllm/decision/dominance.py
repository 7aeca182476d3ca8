"""Which rows are beaten by others: no better anywhere by point estimate, surely worse somewhere.

One row beats another where its point estimate is no worse in any cost and in at least one it is surely better: the
intervals lie apart, and the difference is more than a margin of the worse figure. No circle can come of it (a circle
would be of equal points, and then nobody is surely better), and a larger margin beats no further row. A cost that one
of two rows lacks is unknown, and so the one does not beat the other.

Rows are bits of an integer, so that a table of hundreds of rows is decided hundreds of times in a blink: sets of rows
that are no worse, or surely better, are prefixes of the rows in order of a figure.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

from effllm.decision.rows import Figure
from effllm.tables.description import Better


class Order:
    """The rows by one column; `figures[i]` is row i's, None where it was not measured."""

    def __init__(self, figures: Sequence[Figure | None], better: Better, margin: float):
        # Higher is better of what is lower is better of its negative.
        self._figures = [None if figure is None else _ends(figure, better) for figure in figures]
        self._margin = margin
        known = [(ends, 1 << i) for i, ends in enumerate(self._figures) if ends]
        self.known = sum(bit for _, bit in known)
        self._by_value = _Prefixes([(ends[0], bit) for ends, bit in known])
        self._by_highest = _Prefixes([(ends[2], bit) for ends, bit in known])

    @cached_property
    def no_worse(self) -> list[int]:
        """By row, the rows whose point estimate is no worse; none where the row has no figure."""
        return [self._by_value.up_to(ends[0]) if ends else 0 for ends in self._figures]

    @cached_property
    def surely_better(self) -> list[int]:
        """By row, the rows whose interval lies apart on the better side, by more than the margin."""
        return [
            self._by_highest.below(ends[1]) & self._by_value.below(ends[0] - self._margin * abs(ends[0])) if ends else 0
            for ends in self._figures
        ]

    def best(self, rows: int) -> int:
        """Of a set of rows, those with the best point estimate; none where none has a figure."""
        return self._by_value.first(rows)


def dominators(orders: Sequence[Order], count: int) -> list[int]:
    """By row, the rows that beat it."""
    found = []
    for i in range(count):
        everywhere = (1 << count) - 1 if orders else 0
        somewhere = 0
        for order in orders:
            everywhere &= order.no_worse[i]
            somewhere |= order.surely_better[i]
        found.append(everywhere & somewhere)
    return found


def members(rows: int) -> list[int]:
    """The numbers of the rows in a set."""
    found = []
    while rows:
        lowest = rows & -rows
        found.append(lowest.bit_length() - 1)
        rows ^= lowest
    return found


class _Prefixes:
    """Sets of rows in ascending order of a value."""

    def __init__(self, rows: list[tuple[float, int]]):
        self._sorted = sorted(rows)
        self._values = [value for value, _ in self._sorted]
        self._sets = list(accumulate((bit for _, bit in self._sorted), int.__or__, initial=0))

    def up_to(self, value: float) -> int:
        return self._sets[bisect_right(self._values, value)]

    def below(self, value: float) -> int:
        return self._sets[bisect_left(self._values, value)]

    def first(self, rows: int) -> int:
        best = next((value for value, bit in self._sorted if bit & rows), None)
        return 0 if best is None else self.up_to(best) & rows


def _ends(figure: Figure, better: Better) -> tuple[float, float, float]:
    """Point, lower and upper end, of which lower is better."""
    if better == "lower":
        return figure.value, figure.lowest, figure.highest
    return -figure.value, -figure.highest, -figure.lowest
