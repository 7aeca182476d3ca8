"""The page of two results directories: the same rows before and after, or on two machines."""

from effllm.decision.loss import loss
from effllm.decision.rows import Figure, Row, Table
from effllm.report.blocks import (
    Answer,
    Block,
    Bullets,
    Cell,
    ChartFigure,
    Entry,
    Figures,
    Head,
    Listing,
    Page,
    Section,
    Text,
    csv_text,
)
from effllm.report.changes import verdict
from effllm.report.figures import count_text, listed
from effllm.report.forest import Line, ends_text, forest, value_text
from effllm.report.provenance import provenance_section
from effllm.report.rows import View, capital, told, view_of
from effllm.report.run import Run
from effllm.report.scatter import Axis
from effllm.report.tables import TITLES
from effllm.tables.description import Column
from effllm.tables.paired import ratio_change

_VERDICTS = ("surely better", "surely worse", "not told apart", "no interval")
_WORDS = {"no interval": "without an interval"}
Both = tuple[Row, Row]
"""The same row of the first and of the second run."""


def page_of_two(first: Run, second: Run) -> Page:
    """What changes from the first run to the second: per table the rows of both, and those of one alone."""
    names = _names(first, second)
    answers: list[Answer] = []
    sections: list[Section] = []
    for name in first.tables:
        if name in second.tables:
            section, leads = _table_section(name, first.tables[name], second.tables[name], names)
            sections.append(section)
            answers.append(Answer(TITLES[name], name, leads[0], leads[1:], True))
    for at, (run, other) in enumerate(((first, second), (second, first))):
        alone = [TITLES[name] for name in run.tables if name not in other.tables]
        if alone:
            lead = f"Only {names[at]} has {listed(alone, most=len(alone))}."
            answers.append(Answer("Not compared", f"provenance-{at}", lead, (), False))
    for at, run in enumerate((first, second)):
        blocks = provenance_section(run, f"provenance-{at}").blocks
        sections.append(Section(f"provenance-{at}", f"Provenance of {names[at]}", blocks))
    about = "Changes from the first to the second, not paired by item. No interval holds the spread between runs."
    return Page(f"{names[1]} against {names[0]}", [about], answers, sections, " and ".join(names))


def _names(first: Run, second: Run) -> tuple[str, str]:
    names = (first.directory.resolve().name, second.directory.resolve().name)
    return names if names[0] != names[1] else (str(first.directory), str(second.directory))


def _table_section(name: str, first: Table, second: Table, names: tuple[str, str]) -> tuple[Section, list[str]]:
    """The section of one table, and its first lines: a sentence per column that was measured in both."""
    view = view_of(name, second)
    before = {row.name: row for row in first.rows}
    both = [(before[row.name], row) for row in second.rows if row.name in before]
    blocks: list[Block] = [Text(f"{count_text(len(both), 'row')} in both. {_conditions(both, first)}")]
    alone = [
        f"Only in {label}: {listed(found, most=12)}."
        for label, found in (
            (names[0], [row.name for row in first.rows if row.name not in {row.name for row in second.rows}]),
            (names[1], [row.name for row in second.rows if row.name not in before]),
        )
        if found
    ]
    if alone:
        blocks.append(Bullets(alone))
    leads: list[str] = []
    if both:
        charts = [_chart(view, first, both, column) for column in (view.quality, *view.costs)]
        leads = [chart.sentence for chart in charts if chart.forest]
        blocks += [Figures(charts, is_wide=True), _listing(view, first, both, names)]
    return Section(name, TITLES[name], blocks, table=name), leads or ["No row has a figure in both."]


def _conditions(both: list[Both], table: Table) -> str:
    """The conditions in which rows differ from one run to the other."""
    differing = []
    for name in table.description.scope:
        pairs = dict.fromkeys((one.cells.get(name), other.cells.get(name)) for one, other in both)
        changed = [(one or "not stated", other or "not stated") for one, other in pairs if one != other]
        if changed:
            told_pairs = "; ".join(f"{one} in the first, {other} in the second" for one, other in changed[:3])
            differing.append(f"{name.replace('_', ' ')} ({told_pairs})")
    return f"They differ in {listed(differing, most=len(differing))}." if differing else "Conditions are the same."


def _axis(view: View, column: Column) -> Axis:
    less_is_better = view.table.direction(column.name) != "higher"
    if column is view.quality:
        return Axis(capital(column.text), "points" if column.points else "%", "difference", less_is_better)
    return Axis(capital(column.text), column.unit, "ratio", less_is_better)


def _change(view: View, table: Table, rows: Both, column: Column) -> tuple[Figure | None, str]:
    """The change of a figure with its interval, or why there is none.

    Of the quality a difference in points, or in per cent of the first; of a cost the ratio to the first.
    """
    for side, row in zip(("first", "second"), rows, strict=True):
        if row.status != "ok":
            return None, f"{row.status} in the {side}: {row.reason}"
        if column.name not in row.figures:
            return None, f"not measured in the {side}: {row.why_missing(column.name)}"
    unlike = [name for name in column.conditions if rows[0].cells.get(name) != rows[1].cells.get(name)]
    if unlike:
        return None, f"not compared: {listed([name.replace('_', ' ') for name in unlike])} differ"
    old, new = (row.figures[column.name] for row in rows)
    if column is view.quality:
        better = view.table.direction(column.name) or "higher"
        lost = loss(rows[1], rows[0], column, better, {}, table)
        assert lost is not None
        low, high = (lost.low, lost.high) if old.low is not None and new.low is not None else (None, None)
        if better == "lower":
            return Figure(lost.value, low, high), ""
        return Figure(0.0 - lost.value, None if high is None else 0.0 - high, None if low is None else 0.0 - low), ""
    change = ratio_change(new.value, old.value, _ends(new), _ends(old))
    if change.value is None:
        return None, "not compared: a figure is not above 0"
    return Figure(change.value, *(change.interval or (None, None))), ""


def _ends(figure: Figure) -> tuple[float, float] | None:
    return None if figure.low is None or figure.high is None else (figure.low, figure.high)


def _chart(view: View, table: Table, both: list[Both], column: Column) -> ChartFigure:
    axis = _axis(view, column)
    id, caption = f"{view.name}-{column.name}", f"{capital(column.text)}: change from the first to the second"
    lines, counts = [], dict.fromkeys(_VERDICTS, 0)
    for rows in both:
        figure, why = _change(view, table, rows, column)
        said = verdict(figure, axis) if figure else ""
        if said:
            counts[said] += 1
        note = why or f"{told(rows[0], column)} before, {told(rows[1], column)} now"
        lines.append(Line(view.id(rows[1]), rows[1].name, figure, said, note, view.colour(rows[1])))
    if not any(line.figure for line in lines):
        return ChartFigure(id, caption, "", missing=f"Not shown: {lines[0].note}.")
    told_counts = ", ".join(f"{number} {_WORDS.get(said, said)}" for said, number in counts.items() if number)
    return ChartFigure(id, caption, f"{capital(column.text)}: {told_counts}.", forest=forest(lines, axis))


def _listing(view: View, table: Table, both: list[Both], names: tuple[str, str]) -> Listing:
    """Both figures of every row, and the change."""
    columns = [view.quality, *view.costs]
    heads, header = [Head("row")], ["row"]
    for column in columns:
        change = _axis(view, column).title(is_log=False)
        heads += [Head(f"{column.text}, {label}", is_number=True) for label in names]
        heads.append(Head(f"change: {change}", is_number=True))
        header += [f"{column.name}_{part}" for part in ("first", "second", "change", "change_low", "change_high")]
    entries, lines = [], []
    for rows in both:
        cells = [Cell(rows[1].name)]
        line: list[object] = [rows[1].name]
        for column in columns:
            axis = _axis(view, column)
            figure, _ = _change(view, table, rows, column)
            known = [row.figures.get(column.name) for row in rows]
            for row, at in zip(rows, known, strict=True):
                cells.append(Cell(told(row, column), order=at.value if at else None))
            shown = Cell(value_text(figure, axis), ends_text(figure, axis), figure.value) if figure else Cell("none")
            cells.append(shown)
            line += [at.value if at else None for at in known]
            line += [figure.value, figure.low, figure.high] if figure else [None, None, None]
        is_valid = all(row.status == "ok" for row in rows)
        entries.append(Entry(cells, id=view.id(rows[1]), is_valid=is_valid))
        lines.append(line)
    caption = f"all rows of {view.name} that both have"
    return Listing(f"{view.name}-rows", caption, heads, entries, csv_text(header, lines), is_sortable=True)
