"""Charts of changes against the baseline: cost in percent and quality in points, paired where items were."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effllm.decision.rows import Figure, Row
from effllm.report.absolute import drawn_notes
from effllm.report.blocks import Block, Cell, ChartFigure, Entry, Figures, Head, Heading, Listing, Text, csv_text
from effllm.report.figures import count_text, listed
from effllm.report.forest import Line, ends_text, forest, value_text
from effllm.report.listings import Sheet, number_of
from effllm.report.rows import View, capital
from effllm.report.scatter import Axis, Mark, scatter
from effllm.tables.description import Column

_COLUMNS = ("table", "row", "baseline", "column", "measure", "change", "low", "high", "items", "differing", "reason")


@dataclass(frozen=True)
class Pair:
    """One figure of one row against its baseline.

    form: `ratio` or `difference`. change: None where it is unknown, and `reason` says why; its interval may be unknown
    too. differing, items: how many items have another outcome; None where there are none.
    """

    baseline: str
    form: str
    change: Figure | None
    reason: str
    differing: int | None
    items: int | None


Pairs = Mapping[str, Mapping[str, Pair]]
"""By row and column."""


def read_changes(sheet: Sheet, table: str) -> Pairs:
    """The pairs of one table; `UserError` where the CSV is another."""
    sheet.require(_COLUMNS)
    found: dict[str, dict[str, Pair]] = {}
    for line in sheet.lines:
        if line["table"] == table:
            found.setdefault(line["row"], {})[line["column"]] = _pair(line)
    return found


def _pair(line: Mapping[str, str]) -> Pair:
    value, low, high = (number_of(line, name) for name in ("change", "low", "high"))
    change = None if value is None else Figure(value, low, high)
    differing, items = (
        None if (count := number_of(line, name)) is None else int(count) for name in ("differing", "items")
    )
    return Pair(line["baseline"], line["measure"], change, line["reason"], differing, items)


def change_blocks(view: View, pairs: Pairs) -> list[Block]:
    """Heading, charts and the forest of the quality; nothing is left out without saying so."""
    rows = [row for row in view.table.rows if row.name in pairs]
    baselines = list(dict.fromkeys(pair.baseline for row in rows for pair in pairs[row.name].values()))
    blocks: list[Block] = [Heading(f"{view.name}-change", "Change against the baseline")]
    if not rows:
        return [*blocks, Text("No row of this table has a baseline to be compared with.")]
    quality = view.quality
    has_quality = any(_change(pairs, row, quality) for row in rows)
    paired = any(pairs[row.name][quality.name].items for row in rows if quality.name in pairs[row.name])
    about = f"Each row against {listed(baselines, most=8)}."
    if paired:
        about += " Both were scored on the same items, so the bars of the quality are those of the difference."
    blocks.append(Text(about))
    if has_quality:
        blocks.append(Figures([_chart(view, pairs, rows, cost) for cost in view.costs]))
    forests = [_forest(view, pairs, rows, quality)] if has_quality else []
    if not has_quality:
        forests = [_forest(view, pairs, rows, cost) for cost in view.costs]
    blocks.append(Figures(forests, is_wide=has_quality))
    return blocks


def _change(pairs: Pairs, row: Row, column: Column) -> Figure | None:
    pair = pairs[row.name].get(column.name)
    return pair.change if pair else None


def _axis(view: View, pairs: Pairs, column: Column) -> Axis:
    form = next((pair[column.name].form for pair in pairs.values() if column.name in pair), "ratio")
    return Axis(
        capital(column.text),
        "points" if column.points else column.unit,
        "ratio" if form == "ratio" else "difference",
        less_is_better=view.table.direction(column.name) != "higher",
    )


def _shown(figure: Figure, column: Column, axis: Axis) -> Figure:
    """In points, where the column's differences are."""
    if not column.points or axis.form == "ratio":
        return figure
    low, high = (None if end is None else 100 * end for end in (figure.low, figure.high))
    return Figure(100 * figure.value, low, high)


def _chart(view: View, pairs: Pairs, rows: Sequence[Row], cost: Column) -> ChartFigure:
    quality = view.quality
    id = f"{view.name}-change-{cost.name}"
    caption = f"{capital(cost.text)}: change against the baseline"
    x, y = _axis(view, pairs, cost), _axis(view, pairs, quality)
    marks: list[Mark] = []
    absent: dict[str, list[str]] = {}
    for row in rows:
        changes = [_change(pairs, row, column) for column in (cost, quality)]
        if changes[0] is None or changes[1] is None:
            column = cost if changes[0] is None else quality
            pair = pairs[row.name].get(column.name)
            absent.setdefault(_why(row, column, pair), []).append(row.name)
            continue
        marks.append(_mark(view, row, changes[0], _shown(changes[1], quality, y), x, y))
    if not marks:
        why = next(iter(absent), "no row has a baseline")
        return ChartFigure(id, caption, "", missing=f"Not shown: {why}. No answer on this page rests on {cost.text}.")
    chart = scatter(marks, x, y)
    notes = [f"Not in this chart: {', '.join(names)} ({why})." for why, names in absent.items()]
    return ChartFigure(
        id,
        caption,
        _sentence(view, pairs, rows, cost),
        scatter=chart,
        notes=[*notes, *drawn_notes(chart)],
        listing=_listing(view, pairs, f"{id}-figures", caption, rows, (cost, quality)),
    )


def _mark(view: View, row: Row, x: Figure, y: Figure, x_axis: Axis, y_axis: Axis) -> Mark:
    told = [f"{axis.quantity.lower()} {_in_words(figure, axis)}" for figure, axis in ((x, x_axis), (y, y_axis))]
    return Mark(
        row=view.id(row),
        name=row.name,
        tip="; ".join([row.name, *told]),
        x=x,
        y=y,
        series=view.colour(row),
        shape=view.shape(row),
        is_valid=row.status == "ok",
    )


def _in_words(figure: Figure, axis: Axis) -> str:
    unit = "" if axis.form == "ratio" else axis.unit
    return " ".join(text for text in (value_text(figure, axis), ends_text(figure, axis), unit) if text)


def _forest(view: View, pairs: Pairs, rows: Sequence[Row], column: Column) -> ChartFigure:
    axis = _axis(view, pairs, column)
    caption = f"{capital(column.text)}: change against the baseline"
    id = f"{view.name}-forest-{column.name}"
    lines = []
    for row in rows:
        pair = pairs[row.name].get(column.name)
        figure = pair.change if pair else None
        note = ""
        if pair and pair.items and pair.differing is not None:
            note = f"{pair.differing:,} of {count_text(pair.items, 'item')} differ"
        if figure is None:
            note = _why(row, column, pair)
        said = verdict(figure, axis) if figure else ""
        shown = _shown(figure, column, axis) if figure else None
        lines.append(Line(view.id(row), row.name, shown, said, note, view.colour(row), row.status == "ok"))
    if not any(line.figure for line in lines):
        return ChartFigure(id, caption, "", missing=f"Not shown: {lines[0].note}.")
    listing = _listing(view, pairs, f"{id}-figures", caption, rows, (column,))
    return ChartFigure(id, caption, _sentence(view, pairs, rows, column), forest=forest(lines, axis), listing=listing)


def _why(row: Row, column: Column, pair: Pair | None) -> str:
    if row.status != "ok":
        return f"{row.status}: {row.reason}"
    if column.name not in row.figures:
        return f"{column.text} was not measured, {row.why_missing(column.name)}"
    return pair.reason if pair and pair.reason else f"{column.text} has no baseline"


def verdict(figure: Figure, axis: Axis) -> str:
    """Better or worse for sure, or not told apart; without an interval, nothing is sure."""
    unchanged = axis.unchanged or 0.0
    if figure.low is None or figure.high is None:
        return "no interval"
    if figure.low <= unchanged <= figure.high:
        return "not told apart"
    return "surely better" if (figure.high < unchanged) == axis.less_is_better else "surely worse"


def _sentence(view: View, pairs: Pairs, rows: Sequence[Row], column: Column) -> str:
    """What each technique does to a figure: its range over what it was applied to, and how sure that is."""
    axis = _axis(view, pairs, column)
    parts = []
    for technique in view.series:
        figures = [
            figure for row in rows if view.technique(row) == technique and (figure := _change(pairs, row, column))
        ]
        if not figures:
            continue
        shown = sorted((_shown(figure, column, axis) for figure in figures), key=lambda figure: figure.value)
        ends = list(dict.fromkeys(value_text(figure, axis) for figure in (shown[0], shown[-1])))
        verdicts: dict[str, int] = {}
        for figure in figures:
            said = verdict(figure, axis)
            verdicts[said] = verdicts.get(said, 0) + 1
        counted = [
            name if len(figures) == 1 else f"{name} in {number} of {len(figures)}"
            for name, number in verdicts.items()
            if name != "no interval"
        ]
        unit = "" if axis.form == "ratio" or axis.unit in ends[-1] else f" {axis.unit}"
        parts.append(f"{technique} {' to '.join(ends)}{unit}{f' ({listed(counted)})' if counted else ''}")
    return f"{capital(column.text)}: {'; '.join(parts)}."


def _listing(
    view: View, pairs: Pairs, id: str, caption: str, rows: Sequence[Row], columns: Sequence[Column]
) -> Listing:
    heads = [Head("row"), Head("against")]
    heads += [Head(_axis(view, pairs, column).title(is_log=False), is_number=True) for column in columns]
    names = [
        name for column in columns for name in (f"{column.name}_change", f"{column.name}_low", f"{column.name}_high")
    ]
    entries, lines = [], []
    for row in rows:
        baseline = next(iter(pairs[row.name].values())).baseline
        cells = [Cell(row.name), Cell(baseline)]
        line: list[object] = [row.name, baseline]
        for column in columns:
            axis, figure = _axis(view, pairs, column), _change(pairs, row, column)
            if figure is None:
                cells.append(Cell("not measured"))
                line += [None, None, None]
                continue
            shown = _shown(figure, column, axis)
            cells.append(Cell(value_text(shown, axis), ends_text(shown, axis), shown.value))
            line += [figure.value, figure.low, figure.high]
        entries.append(Entry(cells, id=view.id(row), is_valid=row.status == "ok"))
        lines.append(line)
    return Listing(id, f"figures of the chart: {caption}", heads, entries, csv_text(["row", "baseline", *names], lines))
