"""What a row changes against another, with the interval that is known of it, and what that says of a statement."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from effllm.decision.loss import Pair, read_pairs
from effllm.decision.rows import Figure, Table
from effllm.decision.sheet import Names, Sheet
from effllm.intervals import student
from effllm.tables.paired import ratio_change

Verdict = Literal["holds", "does not hold", "cannot be said"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
UNSAID: Verdict = "cannot be said"

MARGIN = 0.05
"""Share by which two costs that were measured in one run each may differ without a difference: on H100s a repeat of a
fine-tuning took 5 % less time."""

REASONS = {
    "interval": "the interval reaches beyond what is claimed",
    "margin": "the difference is within the margin of 5 % that one run a row leaves open",
    "no_pair": "no group has both rows with this figure",
    "no_table": "there is no such table",
    "no_column": "the table has no such column",
    "no_row": "the table has no such row",
    "not_measured": "a side was not measured, or not recovered",
    "not_ok": "a side is no valid result",
    "not_positive": "a ratio needs figures above zero",
    "other_conditions": "the sides were measured under other conditions",
    "other_batch": "the sides ran at different batch sizes",
    "missing_rows": "rows that it is compared with have no such figure",
    "mixed": "not every group says so",
}
"""In words, why a verdict is not one of the other two, or what a figure lacks."""

Basis = Literal[
    "interval", "interval and margin", "margin", "paired interval", "point", "range of pairs", "spread over pairs"
]


@dataclass(frozen=True)
class Effect:
    """A change: value, its 95 % interval where known, what a verdict rests on; `code` where the value is None."""

    value: float | None
    interval: tuple[float, float] | None = None
    basis: Basis | None = None
    code: str | None = None


NO_EFFECT = Effect(None)


@dataclass(frozen=True)
class Paired:
    """Paired changes by table, row, baseline and column."""

    pairs: Mapping[tuple[str, str, str, str], Pair]

    def find(self, table: str, row: Names, base: Names, column: str) -> Pair | None:
        """Of `row` against `base`, whichever of the two is the baseline there."""
        one, other = " ".join(row), " ".join(base)
        if (table, one, other, column) in self.pairs:
            return self.pairs[table, one, other, column]
        inverse = self.pairs.get((table, other, one, column))
        return inverse.reversed() if inverse else None


NOT_PAIRED = Paired({})


def read_paired(tables: Iterable[Table]) -> Paired:
    """The paired changes of qualities from the CSVs of pairs next to the tables. UserError as `read_pairs`."""
    pairs = {
        (table.path.stem, *key): pair
        for table in tables
        for key, pair in read_pairs(table).items()
        # Costs are judged with the margin that one run a row needs.
        if key[2] in table.columns and table.columns[key[2]].role == "quality"
    }
    return Paired(pairs)


def effect(sheet: Sheet, paired: Paired, row: Names, base: Names, column: str, measure: str) -> Effect:
    """The change of a column from `base` to `row`, as a ratio or as a difference in the column's unit."""
    if row in sheet.left_out or base in sheet.left_out:
        return Effect(None, code="not_ok")
    ours, theirs = sheet.value(row, column), sheet.value(base, column)
    if ours is None or theirs is None:
        return Effect(None, code="not_measured")
    if column in sheet.costs and sheet.conditions(row) != sheet.conditions(base):
        return Effect(None, code="other_conditions")
    if measure == "ratio" and (ours.value <= 0 or theirs.value <= 0):
        return Effect(None, code="not_positive")
    found = paired.find(sheet.name, row, base, column)
    if found:
        # The items are the same on both sides: the baseline's figure is taken as it is.
        low, value, high = (
            _as_measure(end, found, measure, theirs.value) for end in (found.low, found.change, found.high)
        )
        return Effect(value, (low, high), "paired interval")
    change = _ratio(sheet, ours, theirs) if measure == "ratio" else _difference(sheet, ours, theirs)
    if sheet.is_published or column not in sheet.costs or measure == "difference":
        return Effect(*change, "interval" if change[1] else "point")
    return Effect(*change, "interval and margin" if change[1] else "margin")


def _as_measure(change: float, pair: Pair, measure: str, base: float) -> float:
    if pair.measure == measure:
        return change
    return 1 + change / base if measure == "ratio" else (change - 1) * base


def _ratio(sheet: Sheet, ours: Figure, theirs: Figure) -> tuple[float, tuple[float, float] | None]:
    value = ours.value / theirs.value
    if ours.low is None or theirs.low is None or min(ours.low, theirs.low) <= 0:
        return value, None
    if sheet.is_published:
        return value, (ours.lowest / theirs.highest, ours.highest / theirs.lowest)
    return value, ratio_change(
        ours.value, theirs.value, (ours.lowest, ours.highest), (theirs.lowest, theirs.highest)
    ).interval


def _difference(sheet: Sheet, ours: Figure, theirs: Figure) -> tuple[float, tuple[float, float] | None]:
    value = ours.value - theirs.value
    if ours.low is None or theirs.low is None:
        return value, None
    if sheet.is_published:
        return value, (ours.lowest - theirs.highest, ours.highest - theirs.lowest)
    low = math.hypot(ours.value - ours.lowest, theirs.highest - theirs.value)
    high = math.hypot(ours.highest - ours.value, theirs.value - theirs.lowest)
    return value, (value - low, value + high)


def mean_effect(effects: Sequence[Effect]) -> Effect:
    """The mean over pairs, with Student's t interval over them; one pair's own interval where it is alone."""
    if len(effects) == 1:
        return effects[0]
    values = [effect.value for effect in effects if effect.value is not None]
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    reach = student(len(values) - 1) * math.sqrt(spread / len(values))
    return Effect(mean, (mean - reach, mean + reach), "spread over pairs")


def range_effect(effects: Sequence[Effect]) -> Effect:
    """The mean over pairs, with the smallest and the largest of them."""
    if len(effects) == 1:
        return effects[0]
    values = [effect.value for effect in effects if effect.value is not None]
    return Effect(math.fsum(values) / len(values), (min(values), max(values)), "range of pairs")


def judge(found: Effect, region: tuple[float, float]) -> tuple[Verdict, str | None]:
    """Whether a change lies within an open region, and why that cannot be said."""
    if found.value is None:
        return UNSAID, found.code
    low, high = found.interval or (found.value, found.value)
    if found.basis in ("interval and margin", "margin"):
        low, high = low * (1 - MARGIN), high * (1 + MARGIN)
    if region[0] < low and high < region[1]:
        return HOLDS, None
    if high <= region[0] or region[1] <= low:
        return FAILS, None
    return UNSAID, "margin" if found.basis == "margin" else "interval"


def surely_better(sheet: Sheet, paired: Paired, row: Names, other: Names, column: str) -> bool | None:
    """Whether `row` is surely better than `other`; None where a figure is missing."""
    found = effect(sheet, paired, row, other, column, "difference" if column not in sheet.costs else "ratio")
    if found.value is None:
        return None
    zero = 1.0 if column in sheet.costs else 0.0
    region = (-math.inf, zero) if sheet.better[column] == "lower" else (zero, math.inf)
    return judge(found, region)[0] == HOLDS


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several that must all hold."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if verdicts and set(verdicts) == {HOLDS} else UNSAID
