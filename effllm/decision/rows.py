"""Rows of a table's CSV with their types: figures with intervals, names, conditions, and why a cell is empty."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from effllm.errors import Status, UserError
from effllm.tables.cells import REASON_SEPARATOR
from effllm.tables.description import Better, Column, Description
from effllm.tables.descriptions import DESCRIPTIONS

_MEASURED = ("quality", "cost")
_STATUSES: Mapping[str, Status] = {status: status for status in get_args(Status)}
_NO_REASON = "the table does not say why"


@dataclass(frozen=True)
class Figure:
    """A measured figure. low, high: its 95 % interval, None where the table gives none; the value lies within."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def lowest(self) -> float:
        """The lower end of the interval; the value where there is none."""
        return self.value if self.low is None else self.low

    @property
    def highest(self) -> float:
        """The upper end of the interval; the value where there is none."""
        return self.value if self.high is None else self.high


@dataclass(frozen=True)
class Row:
    """One row.

    name: the columns that name it. figures: qualities and costs that were measured; one that was not is in no dict, and
    `why_missing` says why. cells: every other column as text, None where it is empty.
    """

    number: int
    names: tuple[str, ...]
    status: Status
    reason: str
    figures: Mapping[str, Figure]
    cells: Mapping[str, str | None]
    missing: Mapping[str, str]

    @property
    def name(self) -> str:
        """The names together, such as `Llama-1M int4`."""
        return " ".join(self.names)

    def why_missing(self, column: str) -> str:
        """Why the row has no figure in this column: the table's reason, or the row's own."""
        return self.missing.get(column) or self.reason or _NO_REASON


@dataclass(frozen=True)
class Table:
    """The rows of one CSV and what its columns are, by name and in the file's order."""

    path: Path
    description: Description
    columns: Mapping[str, Column]
    rows: tuple[Row, ...]

    def direction(self, column: str) -> Better | None:
        """`lower` or `higher`, whichever is better; None for a column of which the table does not say it."""
        described = self.columns[column]
        if described.direction is None:
            return described.better
        told = {row.cells.get(described.direction) for row in self.rows} - {None}
        if len(told) != 1:
            return None
        return "lower" if told.pop() == "lower" else "higher"

    def why_missing(self, column: str) -> str:
        """Why no row has a figure in this column."""
        reasons = dict.fromkeys(row.why_missing(column) for row in self.rows)
        return next(iter(reasons), _NO_REASON)


def read_table(path: Path) -> Table:
    """The rows of one table of this project, results/table<N>.csv, under whatever name.

    Raises:
        UserError: the file is missing, is no such table, or is damaged; one sentence with the line and the remedy.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; build it first: snakemake --profile profiles/local {path}.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            description = _description(path, header)
            columns = description.columns(header)
            rows = tuple(_rows(path, reader, header, description, columns))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; build the table again.") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a whole CSV file ({error}); build the table again.") from None
    if not rows:
        raise UserError(f"{path} has no rows; build the table again.")
    return Table(path, description, columns, rows)


def _description(path: Path, header: Sequence[str]) -> Description:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: the header names {twice!r} twice; build the table again.")
    found = next((description for description in DESCRIPTIONS.values() if description.fits(header)), None)
    if found is None:
        raise UserError(
            f"{path} is none of this project's tables ({', '.join(DESCRIPTIONS)}): its header begins "
            f"{','.join(header[:6])!r}; give a results/table<N>.csv."
        )
    absent = next((name for name in ("status", "reason", "not_measured") if name not in header), None)
    if absent:
        raise UserError(f"{path} lacks the column {absent!r}, without which no row counts; build the table again.")
    return found


def _rows(
    path: Path,
    lines: Iterator[list[str]],
    header: Sequence[str],
    description: Description,
    columns: Mapping[str, Column],
) -> Iterator[Row]:
    measured = [name for name, column in columns.items() if column.role in _MEASURED]
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        place = f"{path}, row {number}"
        if len(line) != len(header):
            raise UserError(f"{place} has {len(line)} cells where the header has {len(header)}; build the table again.")
        texts = dict(zip(header, line, strict=True))
        names = tuple(texts[name] for name in description.names)
        if names in seen:
            raise UserError(f"{place} has the names of row {seen[names]}, {' '.join(names)!r}; keep one of the two.")
        seen[names] = number
        if texts["status"] not in _STATUSES:
            raise UserError(
                f"{place}: status is {texts['status']!r}, which is none of {', '.join(_STATUSES)}; build the "
                "table again."
            )
        yield Row(
            number,
            names,
            _STATUSES[texts["status"]],
            texts["reason"],
            {name: figure for name in measured if (figure := _figure(columns[name], texts, place))},
            {name: text or None for name, text in texts.items() if name not in measured},
            _missing(texts["not_measured"]),
        )


def _figure(column: Column, texts: Mapping[str, str], place: str) -> Figure | None:
    value = _number(column.name, texts, place)
    if value is None:
        return None
    low, high = (_number(bound, texts, place) for bound in column.interval or ("", ""))
    if low is None or high is None:
        return Figure(value)
    if low > high:
        raise UserError(
            f"{place}: {column.name} has the interval {low:g} to {high:g}, which is the wrong way round; build the "
            "table again."
        )
    # The mean of all and the interval of its stretches are rounded and made apart: the interval holds both.
    return Figure(value, min(low, value), max(high, value))


def _number(name: str, texts: Mapping[str, str], place: str) -> float | None:
    text = texts.get(name, "")
    if text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: {name} is {text!r}, not a finite number; build the table again.")
    return value


def _missing(text: str) -> dict[str, str]:
    """Reasons by column, from the groups of `not_measured`."""
    reasons = {}
    for group in text.split(REASON_SEPARATOR):
        names, colon, why = group.partition(": ")
        if colon:
            reasons.update(dict.fromkeys(names.split(", "), why))
    return reasons
