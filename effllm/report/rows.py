"""The rows of a table as the page draws and lists them: names, colours, shapes, scopes, and what was not measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from effllm.decision.rows import Figure, Row, Table
from effllm.decision.scope import Scope, differing, scopes
from effllm.report.blocks import Cell, Entry, Head, Listing, csv_text
from effllm.report.figures import figure_text, interval_text
from effllm.report.scatter import COLOURS, SHAPES, Axis, Mark
from effllm.tables.description import Column

_TECHNIQUES = ("precision", "method")


@dataclass(frozen=True)
class View:
    """A table under its name, and how its rows are told apart in the page.

    series, groups: names of the techniques (colours) and of what they are applied to (shapes), in the table's order.
    """

    name: str
    table: Table
    series: tuple[str, ...]
    groups: tuple[str, ...]
    place: int

    def id(self, row: Row) -> str:
        """The row's anchor."""
        return f"{self.name}-{row.number}"

    def technique(self, row: Row) -> str:
        """The technique of a row, which its colour shows."""
        return row.names[self.place]

    def group(self, row: Row) -> str:
        """What the technique is applied to, which the mark's shape shows."""
        return " ".join(name for at, name in enumerate(row.names) if at != self.place)

    def colour(self, row: Row) -> int:
        """Index of the row's colour; colours repeat when they are used up."""
        return self.series.index(self.technique(row)) % COLOURS

    def shape(self, row: Row) -> int:
        """Index of the row's shape; shapes repeat when they are used up."""
        return self.groups.index(self.group(row)) % SHAPES

    @property
    def quality(self) -> Column:
        """The column that decides how good a row is."""
        return self.table.columns[self.table.description.quality]

    @property
    def costs(self) -> list[Column]:
        """The costs by which rows are compared."""
        return [self.table.columns[name] for name in self.table.description.costs if name in self.table.columns]

    def axis(self, column: Column, limit: float | None = None) -> Axis:
        """The axis of a column, with a budget on it."""
        factor = 100.0 if column.points else 1.0
        return Axis(
            quantity=capital(column.text),
            unit="points" if column.points else column.unit,
            less_is_better=self.table.direction(column.name) != "higher",
            limit=None if limit is None else factor * limit,
        )

    def scopes(self) -> list[Scope]:
        """The rows that were measured in groups that compare, those that do not count included."""
        decisive = [column.name for column in (self.quality, *self.costs)]
        return scopes(self.table, [row for row in self.table.rows if any(name in row.figures for name in decisive)])


def conditions_told(found: Sequence[Scope], scope: Scope) -> str:
    """What sets a group of rows apart from the others."""
    return ", ".join(f"{_told(name)} {scope.conditions[name] or 'not stated'}" for name in differing(found))


def view_of(name: str, table: Table) -> View:
    """How the rows of a table are told apart."""
    place = next(at for at, column in enumerate(table.description.names) if column in _TECHNIQUES)
    series = tuple(dict.fromkeys(row.names[place] for row in table.rows))
    view = View(name, table, series, (), place)
    return View(name, table, series, tuple(dict.fromkeys(view.group(row) for row in table.rows)), place)


def mark_of(view: View, row: Row, x: Column, y: Column, is_faded: bool) -> Mark:
    """A row as a mark: cost `x` against quality `y`, both measured."""
    return Mark(
        row=view.id(row),
        name=row.name,
        tip="; ".join([row.name, *(f"{column.text} {told(row, column)}" for column in (x, y)), *status_words(row)]),
        x=row.figures[x.name],
        y=scaled(row, y),
        series=view.colour(row),
        shape=view.shape(row),
        is_valid=row.status == "ok",
        is_faded=is_faded,
    )


def scaled(row: Row, column: Column) -> Figure:
    """A figure in the unit it is shown in: hundredths for a column whose differences are points."""
    figure = row.figures[column.name]
    if not column.points:
        return figure
    low, high = (None if end is None else 100 * end for end in (figure.low, figure.high))
    return Figure(100 * figure.value, low, high)


def told(row: Row, column: Column) -> str:
    """A figure in words: value, interval and unit."""
    figure = row.figures.get(column.name)
    if figure is None:
        return f"not measured: {row.why_missing(column.name)}"
    shown = scaled(row, column)
    parts = [figure_text(shown.value), interval_text(shown.low, shown.high), "points" if column.points else column.unit]
    return " ".join(part for part in parts if part)


def status_words(row: Row) -> list[str]:
    """Nothing for a row that counts; else its status and why."""
    return [] if row.status == "ok" else [f"{row.status}: {row.reason}" if row.reason else row.status]


def absent_rows(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """A sentence per reason for the rows that lack one of the columns."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        lacking = next((column for column in columns if column.name not in row.figures), None)
        if lacking:
            reason = "; ".join(status_words(row)) or f"{lacking.text} was not measured, {row.why_missing(lacking.name)}"
            by_reason.setdefault(reason, []).append(row.name)
    return [f"Not in this chart: {', '.join(names)} ({reason})." for reason, names in by_reason.items()]


def rows_listing(view: View, text: str) -> Listing:
    """Every row with its names, quality, costs, status and reason; `text` is the table's whole CSV."""
    columns = [view.quality, *view.costs]
    names = view.table.description.names
    heads = [
        Head("row"),
        *(Head(f"{column.text}{f', {unit}' if (unit := _unit(column)) else ''}", is_number=True) for column in columns),
        Head("status"),
        Head("reason and warnings", is_long=True),
    ]
    entries = [
        Entry(
            [Cell(row.name), *_cells(row, columns), Cell(row.status), Cell(_doubts(row))],
            id=view.id(row),
            series=view.technique(row),
            values=_values(row, columns),
            is_valid=row.status == "ok",
        )
        for row in view.table.rows
    ]
    caption = f"all rows of {view.name} ({' and '.join(names)}; 95 % intervals in brackets)"
    return Listing(f"{view.name}-rows", caption, heads, entries, text, is_sortable=True)


def chart_listing(view: View, id: str, caption: str, rows: Sequence[Row], columns: Sequence[Column]) -> Listing:
    """The figures of one chart, absent ones included."""
    heads = [Head("row"), *(Head(column.text, is_number=True) for column in columns), Head("status")]
    entries = [
        Entry([Cell(row.name), *_cells(row, columns), Cell(row.status)], id=view.id(row), is_valid=row.status == "ok")
        for row in rows
    ]
    header = [*view.table.description.names, *(name for column in columns for name in _with_ends(column)), "status"]
    lines = [[*row.names, *(end for column in columns for end in _ends(row, column)), row.status] for row in rows]
    return Listing(id, caption, heads, entries, csv_text(header, lines))


def capital(text: str) -> str:
    """The text with its first letter large, and no other changed."""
    return text[:1].upper() + text[1:]


def _cells(row: Row, columns: Sequence[Column]) -> Iterator[Cell]:
    for column in columns:
        if column.name not in row.figures:
            yield Cell("not measured")
            continue
        shown = scaled(row, column)
        yield Cell(figure_text(shown.value), interval_text(shown.low, shown.high), shown.value)


def _values(row: Row, columns: Sequence[Column]) -> str:
    figures: Mapping[str, list[float | None]] = {
        column.name: [figure.value, figure.low, figure.high]
        for column in columns
        if (figure := row.figures.get(column.name))
    }
    return json.dumps(figures)


def _with_ends(column: Column) -> tuple[str, ...]:
    return (column.name, f"{column.name}_low", f"{column.name}_high")


def _ends(row: Row, column: Column) -> tuple[float | None, ...]:
    figure = row.figures.get(column.name)
    return (figure.value, figure.low, figure.high) if figure else (None, None, None)


def _doubts(row: Row) -> str:
    return "; ".join(text for text in (row.reason, row.cells.get("warnings")) if text)


def _unit(column: Column) -> str:
    return "points" if column.points else column.unit


def _told(column: str) -> str:
    return column.replace("_", " ")
