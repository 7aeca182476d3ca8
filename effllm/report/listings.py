"""CSVs of findings (claims, comparisons, ranks) as tables of the page."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effllm.errors import UserError
from effllm.report.blocks import Cell, Entry, Head, Listing
from effllm.report.figures import NOT_MEASURED, figure_text, interval_text

_LONG = 40


@dataclass(frozen=True)
class Sheet:
    """A CSV as it is: its text, its header, and its lines by column."""

    path: Path
    text: str
    header: tuple[str, ...]
    lines: tuple[Mapping[str, str], ...]

    def require(self, columns: Sequence[str]) -> None:
        """`UserError` if a column is missing."""
        absent = next((name for name in columns if name not in self.header), None)
        if absent:
            raise UserError(f"{self.path} lacks the column {absent!r}; build it again.")


def read_sheet(path: Path) -> Sheet:
    """Read one CSV; `UserError` if it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
        reader = csv.reader(text.splitlines(keepends=True), strict=True)
        header = tuple(next(reader, ()))
        lines = [dict(zip(header, line, strict=True)) for line in reader]
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path} is not a whole CSV file ({error}); build it again.") from None
    if not header:
        raise UserError(f"{path} is empty; build it again.")
    return Sheet(path, text, header, tuple(lines))


def number_of(line: Mapping[str, str], column: str) -> float | None:
    """The number in a cell; None where it is empty, or holds none."""
    try:
        value = float(line[column])
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def listing_of(
    sheet: Sheet, id: str, caption: str, hide: Sequence[str] = (), keep: Callable[[Mapping[str, str]], bool] = bool
) -> Listing:
    """A listing of the lines that `keep` admits; columns of interval ends are folded into those they belong to."""
    lines = [line for line in sheet.lines if keep(line)]
    ends = {end for name in sheet.header for end in _ends_of(name, sheet.header) or ()}
    columns = [name for name in sheet.header if name not in hide and name not in ends]
    numeric = {
        name for name in columns if any(line[name] for line in lines) and all(map(_is_number, _texts(lines, name)))
    }
    heads = [
        Head(
            name.replace("_", " "),
            is_number=name in numeric,
            is_long=any(len(text) > _LONG for text in _texts(lines, name)),
        )
        for name in columns
    ]
    rows = [Entry([_cell(line, name, name in numeric) for name in columns]) for line in lines]
    return Listing(id, caption, heads, rows, sheet.text, is_sortable=True)


def _ends_of(name: str, header: Sequence[str]) -> tuple[str, str] | None:
    """The columns of the lower and upper end of a column's interval."""
    for ends in ((f"{name}_low", f"{name}_high"), *([("low", "high")] if name == "value" else [])):
        if set(ends) <= set(header):
            return ends
    return None


def _cell(line: Mapping[str, str], name: str, is_numeric: bool) -> Cell:
    text = line[name]
    if not is_numeric or not text:
        return Cell(text or NOT_MEASURED)
    ends = [line[end] for end in _ends_of(name, tuple(line)) or ()]
    low, high = map(float, ends) if ends and all(map(_is_number, ends)) else (None, None)
    return Cell(figure_text(float(text)), interval_text(low, high), float(text))


def _texts(lines: Sequence[Mapping[str, str]], name: str) -> list[str]:
    return [line[name] for line in lines if line[name]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
