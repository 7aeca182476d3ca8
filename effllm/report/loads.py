"""Charts of models under load: latency and energy of a token by the rate at which requests arrive."""

from collections.abc import Sequence

from effllm.decision.rows import Figure, Row
from effllm.report.absolute import drawn_notes
from effllm.report.blocks import Block, ChartFigure, Figures, Heading, Legend, Text
from effllm.report.figures import figure_text
from effllm.report.rows import View, absent_rows, capital, chart_listing, status_words, told
from effllm.report.scatter import SHAPES, Axis, Mark, scatter
from effllm.tables.description import Column

_RATE, _MODEL, _LARGEST = "offered_requests_per_s", "model", "max_rate_per_s"
_LATENCIES = ("ttft_ms_p50", "ttft_ms_p90", "tpot_ms_p50", "e2e_ms_p90")
_ENERGIES = ("energy_J_per_output_token", "energy_above_idle_J_per_output_token")


def load_blocks(view: View) -> list[Block]:
    """Charts of latency and of energy by rate, where the rows of the table have one; nothing otherwise."""
    rows = [row for row in view.table.rows if row.cells.get(_RATE)]
    if not rows:
        return []
    models = list(dict.fromkeys(str(row.cells[_MODEL]) for row in rows))
    about = (
        "What a request waits for, and what a token takes, by the rate at which requests arrive: a line for each model "
        "and precision. Latency counts from the scheduled arrival."
    )
    legend = Legend(view.series, models, ["bars: 95 % intervals", "hollow: invalid"])
    blocks: list[Block] = [Heading(f"{view.name}-loads", "By load"), Text(about), Text(_largest(view, rows)), legend]
    for title, names in (("Latency by load:", _LATENCIES), ("Energy by load:", _ENERGIES)):
        columns = [view.table.columns[name] for name in names if name in view.table.columns]
        blocks += [Text(title), Figures([_chart(view, rows, models, column) for column in columns])]
    return blocks


def _chart(view: View, rows: Sequence[Row], models: Sequence[str], column: Column) -> ChartFigure:
    id = f"{view.name}-load-{column.name}"
    caption = f"{capital(column.text)} by load"
    measured = [row for row in rows if column.name in row.figures]
    if not measured:
        return ChartFigure(id, caption, "", missing=f"Not measured: {rows[0].why_missing(column.name)}.")
    marks = {row.number: _mark(view, row, models, column) for row in measured}
    lines: dict[tuple[str | None, str], list[Mark]] = {}
    for row in sorted(measured, key=_rate):
        lines.setdefault((row.cells[_MODEL], view.technique(row)), []).append(marks[row.number])
    chart = scatter(
        list(marks.values()), Axis("Arrivals", "requests/s"), view.axis(column), joined=list(lines.values())
    )
    return ChartFigure(
        id,
        caption,
        _spread(view, measured, column),
        scatter=chart,
        notes=[*absent_rows(rows, [column]), *drawn_notes(chart)],
        listing=chart_listing(view, f"{id}-figures", f"figures of the chart: {caption}", rows, [column]),
    )


def _rate(row: Row) -> float:
    return float(row.cells[_RATE] or 0.0)


def _mark(view: View, row: Row, models: Sequence[str], column: Column) -> Mark:
    rate = _rate(row)
    return Mark(
        row=view.id(row),
        name=row.name,
        tip="; ".join([row.name, f"{figure_text(rate)} requests/s", told(row, column), *status_words(row)]),
        x=Figure(rate),
        y=row.figures[column.name],
        series=view.colour(row),
        shape=models.index(str(row.cells[_MODEL])) % SHAPES,
        is_valid=row.status == "ok",
    )


def _spread(view: View, rows: Sequence[Row], column: Column) -> str:
    """From the lowest to the highest rate of the valid rows of each precision, how the figure changes."""
    by_technique: dict[str, list[float]] = {}
    for row in rows:
        if row.status == "ok":
            by_technique.setdefault(view.technique(row), []).append(row.figures[column.name].value)
    if not by_technique:
        return f"No valid row has a figure of {column.text}."
    told_of = [
        f"{name} {figure_text(min(values))} to {figure_text(max(values))}" for name, values in by_technique.items()
    ]
    return f"{capital(column.text)} in {column.unit}: {'; '.join(told_of)}."


def _largest(view: View, rows: Sequence[Row]) -> str:
    """The largest rate within the objective of each model and precision, or why there is none."""
    column = view.table.columns[_LARGEST]
    told_of = {(row.cells[_MODEL], view.technique(row)): told(row, column) for row in rows}
    promise = rows[0].cells.get("slo")
    begin = f"Largest rate that meets the SLO ({promise})" if promise else "Largest rate that meets an SLO"
    return f"{begin}: {'; '.join(f'{model} {name} {shown}' for (model, name), shown in told_of.items())}."
