"""How much quality one row has less than another, with an interval: paired where the pairs are known."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from effllm.decision.rows import Figure, Row, Table
from effllm.errors import UserError
from effllm.tables.description import Better, Column
from effllm.tables.paired import PAIRS, pairs_of

_NUMBERS = ("value", "baseline_value", "change", "low", "high", "bound")
_COLUMNS = {"table", "row", "baseline", "column", "measure", *_NUMBERS}
Key = tuple[str, str, str]
"""Row, baseline and column."""


@dataclass(frozen=True)
class Loss:
    """Quality lost, above 0 where the row is worse: in points for a fraction, else in per cent of the
    other's figure (of 1 where that is 0).

    low, high: 95 % interval. paired: whether both sides were compared item by item.
    """

    value: float
    low: float
    high: float
    paired: bool = False


@dataclass(frozen=True)
class Pair:
    """A change against a baseline: a `difference` or a `ratio`, and its 95 % interval."""

    measure: str
    change: float
    low: float
    high: float

    def reversed(self) -> "Pair":
        """The baseline's change against the row."""
        if self.measure == "difference":
            return Pair(self.measure, -self.change, -self.high, -self.low)
        return Pair(self.measure, 1 / self.change, 1 / self.high, 1 / self.low)


def read_pairs(table: Table) -> dict[Key, Pair]:
    """The paired changes of a table's rows from the CSV of its pairs next to it, or else from that of all tables.

    None where neither is there.

    Where no item differs the interval is the bound that so many equal items set.

    Raises:
        UserError: the file is damaged, or was made of another state of the table.
    """
    paths = (table.path.with_name(f"{name}.csv") for name in (pairs_of(table.path.stem), PAIRS))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    found: dict[Key, Pair] = {}
    rows = {row.name: row for row in table.rows}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not set(reader.fieldnames or ()) >= _COLUMNS:
            absent = ", ".join(sorted(_COLUMNS - set(reader.fieldnames or ())))
            raise UserError(
                f"{path} lacks the columns {absent}; build it again: snakemake --profile profiles/local {path}."
            )
        for line in reader:
            if path.stem == PAIRS and line["table"] != table.path.stem:
                continue
            key = (line["row"], line["baseline"], line["column"])
            *values, change, low, high, bound = _numbers(path, reader.line_num, line)
            if values != [_value(rows.get(name), key[2]) for name in key[:2]] and not {*key[:2]} - rows.keys():
                raise UserError(
                    f"{path}, line {reader.line_num}: {key[2]} of {key[0]} and {key[1]} is not what {table.path} has; "
                    "build both again."
                )
            pair = _pair(line["measure"], change, low, high, bound)
            if pair and pair.measure == "ratio" and pair.low <= 0:
                raise UserError(
                    f"{path}, line {reader.line_num}: a ratio reaches down to {pair.low:g}; build it again."
                )
            if pair:
                found[key] = pair
    return found


def _value(row: Row | None, column: str) -> float | None:
    figure = row.figures.get(column) if row else None
    return figure.value if figure else None


def _numbers(path: Path, number: int, line: Mapping[str, str | None]) -> list[float | None]:
    try:
        return [float(text) if (text := line[name]) else None for name in _NUMBERS]
    except ValueError:
        raise UserError(
            f"{path}, line {number}: one of {', '.join(_NUMBERS)} is no number; build the file again."
        ) from None


def _pair(
    measure: str, change: float | None, low: float | None, high: float | None, bound: float | None
) -> Pair | None:
    if change is not None and bound is not None:
        low, high = change - bound, change + bound
    if change is None or low is None or high is None:
        return None
    return Pair(measure, change, low, high)


def loss(row: Row, best: Row, column: Column, better: Better, pairs: Mapping[Key, Pair], table: Table) -> Loss | None:
    """What `row` loses against `best` in a quality; None where either has no figure."""
    own, other = row.figures.get(column.name), best.figures.get(column.name)
    if own is None or other is None:
        return None
    pair = pairs.get((row.name, best.name, column.name))
    if pair is None:
        inverse = pairs.get((best.name, row.name, column.name))
        pair = inverse.reversed() if inverse else None
    scale = 100.0 if column.points or not other.value else 100 / abs(other.value)
    if pair is None:
        return _unpaired(own, other, better, scale)
    if pair.measure == "ratio":
        scale, pair = 100.0, Pair("difference", pair.change - 1, pair.low - 1, pair.high - 1)
    if better == "higher":
        pair = pair.reversed()
    return Loss(_scaled(pair.change, scale), _scaled(pair.low, scale), _scaled(pair.high, scale), paired=True)


def _unpaired(own: Figure, other: Figure, better: Better, scale: float) -> Loss:
    """From both sides' own intervals, as if independent (MOVER, Zou and Donner 2008)."""
    worse, less = (own, other) if better == "lower" else (other, own)
    value = worse.value - less.value
    low = value - math.hypot(worse.value - worse.lowest, less.highest - less.value)
    high = value + math.hypot(worse.highest - worse.value, less.value - less.lowest)
    return Loss(_scaled(value, scale), _scaled(low, scale), _scaled(high, scale))


def _scaled(value: float, scale: float) -> float:
    return value * scale if value else 0.0
