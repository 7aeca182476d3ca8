"""Charts of a table's own figures: each cost against the quality, or each cost alone where no quality was measured."""

from collections.abc import Collection, Mapping, Sequence

from effllm.decision.rows import Figure, Row
from effllm.decision.scope import Scope
from effllm.report.blocks import ChartFigure, Figures
from effllm.report.figures import count_text, listed
from effllm.report.forest import Line, forest
from effllm.report.rows import View, absent_rows, capital, chart_listing, mark_of, status_words, told
from effllm.report.scatter import Axis, Mark, Scatter, scatter
from effllm.tables.description import Column

_MOST_NAMES = 4


def absolute_figures(
    view: View, scope: Scope, anchor: str, limits: Mapping[str, float], beaten: Collection[int]
) -> Figures:
    """A chart per cost of the table, over the rows of one scope.

    anchor: beginning of the charts' ids. limits: budgets by column. beaten: numbers of the rows that another row surely
    beats, which are drawn faint.
    """
    quality = view.quality
    if any(quality.name in row.figures for row in scope.rows):
        charts = [_against_quality(view, scope, column, anchor, limits, beaten) for column in view.costs]
        return Figures(charts)
    # Names and bars side by side need the width.
    return Figures([_alone(view, scope, column, anchor) for column in view.costs], is_wide=True)


def _against_quality(
    view: View, scope: Scope, cost: Column, anchor: str, limits: Mapping[str, float], beaten: Collection[int]
) -> ChartFigure:
    quality = view.quality
    id = f"{anchor}-{cost.name}"
    caption = f"{capital(quality.text)} by {cost.text}"
    rows = [row for row in scope.rows if cost.name in row.figures and quality.name in row.figures]
    if not rows:
        why = next((row.why_missing(cost.name) for row in scope.rows if cost.name not in row.figures), "")
        missing = f"Not measured: {why}. No answer on this page rests on {cost.text}."
        return ChartFigure(id, caption, "", missing=missing)
    marks = [mark_of(view, row, cost, quality, row.number in beaten) for row in rows]
    x, y = view.axis(cost, limits.get(cost.name)), view.axis(quality, limits.get(quality.name))
    chart = scatter(marks, x, y, _frontier(marks, x, y))
    columns = [cost, quality]
    return ChartFigure(
        id,
        caption,
        leader(rows, cost, x),
        scatter=chart,
        notes=[*absent_rows(scope.rows, columns), *drawn_notes(chart)],
        listing=chart_listing(view, f"{id}-figures", f"figures of the chart: {caption}", scope.rows, columns),
    )


def _alone(view: View, scope: Scope, cost: Column, anchor: str) -> ChartFigure:
    id = f"{anchor}-{cost.name}"
    rows = [row for row in scope.rows if cost.name in row.figures]
    caption = capital(cost.text) + (f", {cost.unit}" if cost.unit else "")
    if not rows:
        why = next((row.why_missing(cost.name) for row in scope.rows), "")
        return ChartFigure(
            id, caption, "", missing=f"Not measured: {why}. No answer on this page rests on {cost.text}."
        )
    axis = view.axis(cost)
    lines = [
        Line(
            view.id(row),
            row.name,
            row.figures.get(cost.name),
            verdict="; ".join(status_words(row)),
            note="" if cost.name in row.figures else row.why_missing(cost.name),
            series=view.colour(row),
            is_valid=row.status == "ok",
        )
        for row in scope.rows
    ]
    listing = chart_listing(view, f"{id}-figures", f"figures of the chart: {caption}", scope.rows, [cost])
    return ChartFigure(id, caption, leader(rows, cost, axis), forest=forest(lines, axis), listing=listing)


def leader(rows: Sequence[Row], column: Column, axis: Axis) -> str:
    """The best valid row by point estimate, and whether its interval tells it apart from the others."""
    valid = [row for row in rows if row.status == "ok"]
    if not valid:
        return f"No valid row has a figure of {column.text}."
    sign = 1 if axis.less_is_better else -1
    best = min(valid, key=lambda row: (sign * row.figures[column.name].value, row.number))
    begin = f"{'Least' if axis.less_is_better else 'Most'} {column.text}: {best.name}, {told(best, column)}"
    if len(valid) == 1:
        return f"{begin}; no other valid row has a figure."
    if all(row.figures[column.name].low is None for row in valid):
        return f"{begin}; one figure a row, without intervals."
    tied = [
        row.name for row in valid if row is not best and _overlap(row.figures[column.name], best.figures[column.name])
    ]
    if not tied:
        return f"{begin}; its interval lies apart from every other row's."
    if len(tied) == len(valid) - 1:
        return f"{begin}; every other row's interval overlaps with it."
    return f"{begin}; not told apart from {listed(tied) if len(tied) <= _MOST_NAMES else f'{len(tied)} others'}."


def drawn_notes(chart: Scatter) -> list[str]:
    """What a reader must know of how a chart is drawn."""
    notes = list(chart.off_axis)
    if chart.moved:
        verb = "was" if chart.moved == 1 else "were"
        notes.append(
            f"{count_text(chart.moved, 'mark')} {verb} moved sideways to be seen; dots lead to the true place."
        )
    return notes


def _overlap(one: Figure, other: Figure) -> bool:
    return one.lowest <= other.highest and other.lowest <= one.highest


def _frontier(marks: Sequence[Mark], x: Axis, y: Axis) -> list[Mark]:
    """The valid rows that no other valid row betters in both figures, by their point estimates."""
    x_sign, y_sign = (1 if axis.less_is_better else -1 for axis in (x, y))
    points = [(x_sign * mark.x.value, y_sign * mark.y.value) for mark in marks]
    found = []
    for mark, point in zip(marks, points, strict=True):
        if not mark.is_valid:
            continue
        betters = (
            other[0] <= point[0] and other[1] <= point[1] and other != point
            for rival, other in zip(marks, points, strict=True)
            if rival.is_valid
        )
        if not any(betters):
            found.append(mark)
    return found
