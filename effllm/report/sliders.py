"""Budgets to try: for every column that a table is decided by, the values that a slider stops at."""

import json
import math
from collections.abc import Mapping, Sequence

from effllm.decision.rows import Table
from effllm.report.blocks import Slider, Sliders
from effllm.report.rows import View, capital
from effllm.tables.description import Column

_STOPS = 40
_DIGITS = 3


def sliders_of(view: View, command: str, limits: Mapping[str, float]) -> Sliders | None:
    """A slider per cost and for the quality, as far as they were measured; None where nothing was.

    command: `effllm recommend results/table9.csv`, to which the script adds the budgets. limits: the study's budgets by
    column, at which the sliders start.
    """
    found = [
        _slider(view, column, limits.get(column.name))
        for column in [view.quality, *view.costs]
        if any(column.name in row.figures for row in view.table.rows)
    ]
    return Sliders(command, found) if found else None


def _slider(view: View, column: Column, limit: float | None) -> Slider:
    figures = [row.figures[column.name] for row in view.table.rows if column.name in row.figures]
    is_maximum = view.table.direction(column.name) != "higher"
    stops = _stops(min(figure.lowest for figure in figures), max(figure.highest for figure in figures))
    if limit is not None:
        stops = sorted({*stops, limit})
    # The last stop of a maximum and the first of a minimum stand for no limit.
    free = stops[-1] if is_maximum else stops[0]
    if limit == free:
        beyond = free + (abs(free) or 1.0) if is_maximum else free - (abs(free) or 1.0)
        stops = [*stops, beyond] if is_maximum else [beyond, *stops]
    nothing = len(stops) - 1 if is_maximum else 0
    return Slider(
        id=f"{view.name}-{column.name}-budget",
        column=column.name,
        label=capital(column.text),
        unit=column.unit,
        side="maximum" if is_maximum else "minimum",
        stops=stops,
        stops_text=json.dumps(stops),
        start=nothing if limit is None else stops.index(limit),
    )


def _stops(low: float, high: float) -> list[float]:
    """Numbers of three digits from a little below `low` to a little above `high`."""
    room = 0.05 * ((high - low) or abs(high) or 1.0)
    step = (high - low + 2 * room) / _STOPS
    digits = max(_DIGITS, _DIGITS + math.ceil(math.log10(max(abs(high), abs(low)) / step)) - 2)
    return sorted({float(f"{low - room + index * step:.{digits}g}") for index in range(_STOPS + 1)})


def limits_text(limits: Mapping[str, float], table: Table) -> Sequence[str]:
    """The budgets in words."""
    texts = []
    for name, limit in limits.items():
        column = table.columns[name]
        side = "at least" if table.direction(name) == "higher" else "at most"
        texts.append(f"{column.text} {side} {limit:g} {column.unit}".strip())
    return texts
