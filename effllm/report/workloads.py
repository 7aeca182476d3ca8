"""Charts of each workload by the size of the models: prefill, decoding, energy and memory of every technique."""

from collections.abc import Sequence

from effllm.decision.query import workload_column
from effllm.decision.rows import Figure, Row
from effllm.report.absolute import drawn_notes
from effllm.report.blocks import Block, ChartFigure, Figures, Heading, Text
from effllm.report.rows import View, absent_rows, capital, chart_listing, status_words, told
from effllm.report.scatter import Axis, Mark, scatter
from effllm.tables.description import Column

_SIZE = "weight_bytes"
_SHOWN = ("prefill_tokens_per_s", "decode_tokens_per_s", "energy_J_per_token", "memory_peak_GB")


def workload_blocks(view: View) -> list[Block]:
    """A row of charts for each workload, where the table has several and models of two sizes; nothing otherwise."""
    others = _others(view)
    sizes = _sizes(view)
    if not others or len(set(sizes.values())) < 2:
        return []
    about = (
        "What a token costs by the size of the model, for each workload: larger models to the right, a colour for each "
        "technique. Sizes are those of the weights in sixteen bits."
    )
    blocks: list[Block] = [Heading(f"{view.name}-workloads", "By workload and size"), Text(about)]
    for workload in ("", *others):
        name = workload or "the table's own workload"
        charts = [_chart(view, sizes, workload, column, name) for column in _columns(view, workload)]
        blocks += [Text(f"{capital(name)}:"), Figures(charts)]
    return blocks


def _others(view: View) -> list[str]:
    """The workloads beside the table's own, by the columns that are theirs."""
    ending = view.table.description.workloads.get("IT_tokens_per_s", "").removeprefix("*")
    return [name.removesuffix(ending) for name in view.table.columns if ending and name.endswith(ending)]


def _columns(view: View, workload: str) -> list[Column]:
    names = [workload_column(view.table, name, workload or None) for name in _SHOWN]
    return [view.table.columns[name] for name in names if name in view.table.columns]


def _sizes(view: View) -> dict[str, float]:
    """Billions of parameters of what the techniques are applied to: two bytes each, in the row with the most bytes."""
    found: dict[str, float] = {}
    for row in view.table.rows:
        if weights := row.figures.get(_SIZE):
            group = view.group(row)
            found[group] = max(found.get(group, 0.0), weights.value / 2e9)
    return found


def _chart(view: View, sizes: dict[str, float], workload: str, column: Column, name: str) -> ChartFigure:
    id = f"{view.name}-workload-{column.name}"
    caption = f"{capital(column.text)} by size, {name}"
    rows = [row for row in view.table.rows if column.name in row.figures and view.group(row) in sizes]
    if not rows:
        why = next((row.why_missing(column.name) for row in view.table.rows), "")
        return ChartFigure(id, caption, "", missing=f"Not measured: {why}.")
    marks = [_mark(view, row, sizes[view.group(row)], column, workload) for row in rows]
    chart = scatter(marks, Axis("Parameters", "billions"), view.axis(column))
    return ChartFigure(
        id,
        caption,
        _best_by_size(view, [row for row in rows if _is_valid(row, workload)], sizes, column),
        scatter=chart,
        notes=[*absent_rows(view.table.rows, [column]), *drawn_notes(chart)],
        listing=chart_listing(view, f"{id}-figures", f"figures of the chart: {caption}", view.table.rows, [column]),
    )


def _is_valid(row: Row, workload: str) -> bool:
    return (row.cells.get(f"{workload}_status") if workload else row.status) == "ok"


def _mark(view: View, row: Row, size: float, column: Column, workload: str) -> Mark:
    return Mark(
        row=view.id(row),
        name=row.name,
        tip="; ".join([row.name, f"{size:.3g} billion parameters", told(row, column), *status_words(row)]),
        x=Figure(size),
        y=row.figures[column.name],
        series=view.colour(row),
        shape=view.shape(row),
        is_valid=_is_valid(row, workload),
    )


def _best_by_size(view: View, rows: Sequence[Row], sizes: dict[str, float], column: Column) -> str:
    """The technique with the best figure at the smallest and at the largest size."""
    if not rows:
        return f"No valid row has a figure of {column.text}."
    sign = -1 if view.table.direction(column.name) == "higher" else 1
    told_of = []
    measured = sorted({sizes[view.group(row)] for row in rows})
    for size in dict.fromkeys((measured[0], measured[-1])):
        there = [row for row in rows if sizes[view.group(row)] == size]
        best = min(there, key=lambda row: (sign * row.figures[column.name].value, row.number))
        told_of.append(f"at {size:.3g} billion parameters {view.technique(best)}, {told(best, column)}")
    return f"{'Most' if sign < 0 else 'Least'}: {'; '.join(told_of)}."
