"""The choice among the rows of one scope, in the open: what fits, what is good enough, what nothing beats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from effllm.decision.budget import Answer, Limit, answer_to_all
from effllm.decision.dominance import Order, dominators, members
from effllm.decision.loss import Key, Loss, Pair, loss
from effllm.decision.rows import Row, Table

Outcome = Literal["one", "several", "not decided", "too close to call", "nothing fits"]
"""one: a row is recommended. several: each of a set is best for something. not decided: the preferences do not tell the
set apart. too close to call: nothing surely fits, and something may. nothing fits: every row surely exceeds a limit."""


@dataclass(frozen=True)
class Rules:
    """What decides: limits, and how rows within them are compared.

    quality: the column, None where it is not to count. quality_loss: what a row may surely lose against the best, in
    points or per cent. costs: the columns in which rows beat each other. margin: the share of the worse figure that a
    difference must exceed. preferred: columns in order of importance.
    """

    limits: tuple[Limit, ...]
    quality: str | None
    quality_loss: float
    costs: tuple[str, ...]
    margin: float
    preferred: tuple[str, ...] = ()
    pairs: Mapping[Key, Pair] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """Sets of row numbers, each within the one before. chosen: what the preferences leave of `unbeaten`."""

    fitting: int
    good: int
    unbeaten: int
    chosen: int
    best: int | None


class Field:
    """The rows of one scope, which are decided many times under changing limits."""

    def __init__(self, table: Table, rows: Sequence[Row], rules: Rules):
        self.table, self.rows, self.rules = table, tuple(rows), rules
        self.everything = (1 << len(self.rows)) - 1
        measured = {name for row in self.rows for name in row.figures}
        self.costs = tuple(name for name in rules.costs if name in measured)
        self.unmeasured = tuple(name for name in rules.costs if name not in measured)
        self.quality = rules.quality if rules.quality in measured else None
        self._orders: dict[str, Order] = {}
        self._good: dict[int, int] = {}

    def order(self, column: str) -> Order:
        """The rows by one column; of a column that does not say which way is better, fewer is taken to be."""
        if column not in self._orders:
            better = self.table.direction(column) or "lower"
            figures = [row.figures.get(column) for row in self.rows]
            self._orders[column] = Order(figures, better, self.rules.margin)
        return self._orders[column]

    @cached_property
    def beaten_by(self) -> list[int]:
        """By row, the rows that beat it in the costs."""
        return dominators([self.order(name) for name in self.costs], len(self.rows))

    def fitting(self, limits: Sequence[Limit]) -> int:
        """The rows that surely fit all limits."""
        found = self.everything
        for limit in limits:
            found &= sum(
                1 << i for i, row in enumerate(self.rows) if limit.answer(row.figures.get(limit.column)) == "fits"
            )
        return found

    def answers(self, row: Row) -> dict[Limit, Answer]:
        """What a row says to each limit."""
        return {limit: limit.answer(row.figures.get(limit.column)) for limit in self.rules.limits}

    def choose(self, fitting: int) -> Choice:
        """The choice among the rows that fit."""
        best = self.best_quality(fitting)
        good = fitting if best is None else fitting & self.good_enough(best)
        unbeaten = sum(1 << i for i in members(good) if not self.beaten_by[i] & good)
        return Choice(fitting, good, unbeaten, self.preferred(unbeaten), best)

    def best_quality(self, rows: int) -> int | None:
        """The row with the best quality of a set; of several with the same figure the one that is first by name."""
        if self.quality is None:
            return None
        first = members(self.order(self.quality).best(rows))
        return min(first, key=lambda i: self.rows[i].names) if first else None

    def loss(self, row: int, best: int) -> Loss | None:
        """What one row loses in quality against another."""
        assert self.quality is not None
        better = self.table.direction(self.quality) or "higher"
        column = self.table.columns[self.quality]
        return loss(self.rows[row], self.rows[best], column, better, self.rules.pairs, self.table)

    def good_enough(self, best: int) -> int:
        """The rows not told apart from `best` in quality, or surely worse by no more than is allowed."""
        if best not in self._good:
            self._good[best] = sum(1 << i for i in range(len(self.rows)) if self._is_good_enough(i, best))
        return self._good[best]

    def _is_good_enough(self, row: int, best: int) -> bool:
        lost = self.loss(row, best)
        return row == best or (lost is not None and (lost.low <= 0 or lost.high <= self.rules.quality_loss))

    def preferred(self, rows: int) -> int:
        """What the preferences leave of a set: column by column, all that the best there does not surely beat."""
        for column in self.rules.preferred:
            order = self.order(column)
            best = order.best(rows)
            rows = sum(1 << i for i in members(rows) if not order.surely_better[i] & best)
        return rows

    def outcome(self, choice: Choice) -> Outcome:
        """What kind of answer a choice is."""
        if not choice.fitting:
            answers = [answer_to_all(self.answers(row).values()) for row in self.rows]
            return "nothing fits" if all(answer == "exceeds" for answer in answers) else "too close to call"
        if choice.chosen.bit_count() == 1:
            return "one"
        return "not decided" if self.rules.preferred else "several"

    def best_for(self, rows: int) -> dict[int, list[str]]:
        """By row of a set, the columns in which it leads: not surely beaten by the best of the set, as others are."""
        found: dict[int, list[str]] = {i: [] for i in members(rows)}
        for column in self.costs:
            order = self.order(column)
            best = order.best(rows)
            leading = [i for i in members(rows & order.known) if not order.surely_better[i] & best]
            if len(leading) < len(found):
                for i in leading:
                    found[i].append(column)
        return found
