"""From which model size on a precision saves time, energy or memory against the baseline: results/crossover.csv.

Of a table of precisions. Between two measured sizes the ratio of the costs is taken to be a power of the size, a line
on logarithmic axes; beyond them nothing is said. The interval is where the ends of the ratio's own interval cross 1,
widened by the margin that one run a row leaves open, as in claims.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from effllm.decision.effects import MARGIN, Paired, effect
from effllm.decision.sheet import Names, Sheet

COLUMNS = (
    "table",
    "workload",
    "batch_size",
    "method",
    "baseline",
    "resource",
    "column",
    "measured_b",
    "ratios",
    "saves",
    "parameters_b",
    "parameters_b_low",
    "parameters_b_high",
    "reason_code",
    "reason",
)
"""The columns of results/crossover.csv."""

REASONS = {
    "no_size": "no size is known: neither weight_bytes of the baseline's row nor the model's name says one, as 7B does",
    "too_few_sizes": "fewer than two sizes have this figure in both precisions, measured under the same conditions",
    "outside": "not within the measured sizes",
    "several": "it saves at some sizes and not at larger and smaller ones: there is no one crossing",
    "open": "the interval reaches beyond the measured sizes",
}
SIZE = "weight_bytes"
# Of the table's own workload, and of the others.
_RESOURCES = {
    "time": ("latency_ms", "latency_ms"),
    "energy": ("energy_J_per_token", "energy_J_per_token"),
    "memory": ("memory_peak_GB", "AMU_GB"),
}


@dataclass(frozen=True)
class Point:
    """One model: parameters in billions, the ratio of the costs, and the ends that it may have."""

    size: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Crossing:
    """saves: at which sizes, in words. size, low, high: where the ratio crosses 1, None where that is not measured."""

    saves: str | None = None
    size: float | None = None
    low: float | None = None
    high: float | None = None
    code: str | None = None


def crossover_rows(
    sheet: Sheet, paired: Paired, baseline: str, main: str = "", batch_sizes: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """A row for each workload, method and resource.

    `main` is the id of the table's own workload, which the table itself does not say; `batch_sizes` those of the
    workloads.
    """
    methods = dict.fromkeys(sheet.technique_of(row) for row in (*sheet.figures, *sheet.left_out))
    bases = [row for row in sheet.figures if sheet.technique_of(row) == baseline]
    is_sized = not bases or any(_billions(sheet, base) is not None for base in bases)
    found = []
    for workload in ("", *_workloads(sheet)):
        name = workload or main
        for method in methods:
            if method == baseline:
                continue
            for resource, (own, other) in _RESOURCES.items():
                column = f"{workload}_{other}" if workload else own
                points = sorted(_points(sheet, paired, method, baseline, column, workload), key=lambda p: p.size)
                crossing = cross(points) if is_sized else Crossing(code="no_size")
                cells = (
                    sheet.name, name or None, (batch_sizes or {}).get(name), method, baseline, resource, column,
                    "; ".join(f"{point.size:.4g}" for point in points) or None,
                    "; ".join(f"{point.ratio:.4g}" for point in points) or None,
                    crossing.saves, crossing.size, crossing.low, crossing.high, crossing.code,
                    REASONS[crossing.code] if crossing.code else None,
                )  # fmt: skip
                found.append(dict(zip(COLUMNS, cells, strict=True)))
    return found


def cross(measured: Sequence[Point]) -> Crossing:
    """Where the ratio crosses 1; the order of the points does not count."""
    points = _by_size(measured)
    if len(points) < 2:
        return Crossing(code="too_few_sizes")
    sizes = [point.size for point in points]
    crossings = _crossings(sizes, [point.ratio for point in points])
    saves_at_last = points[-1].ratio < 1
    if not crossings:
        return Crossing("at every measured size" if saves_at_last else "at no measured size", code="outside")
    if len(crossings) > 1:
        return Crossing("at some measured sizes", code="several")
    # Where the ratio falls with the size its lower ends cross first, where it rises its upper ends. An end that saves
    # at the smallest size, or does not at the largest, crosses beyond them, whatever it does between.
    lows, highs = [point.low for point in points], [point.high for point in points]
    first, last = (lows, highs) if saves_at_last else (highs, lows)
    low = _crossings(sizes, first)[0] if (first[0] < 1) != saves_at_last else None
    high = _crossings(sizes, last)[-1] if (last[-1] < 1) == saves_at_last else None
    code = "open" if low is None or high is None else None
    return Crossing("from this size on" if saves_at_last else "up to this size", crossings[0], low, high, code)


def _by_size(points: Sequence[Point]) -> list[Point]:
    """One point for each size, in their order: the geometric mean of the models of one size, within all their ends."""
    found = []
    for size, same in groupby(sorted(points, key=lambda point: point.size), key=lambda point: point.size):
        models = list(same)
        mean = math.exp(math.fsum(sorted(math.log(model.ratio) for model in models)) / len(models))
        ratio = models[0].ratio if len(models) == 1 else mean
        found.append(Point(size, ratio, min(model.low for model in models), max(model.high for model in models)))
    return found


def _crossings(sizes: Sequence[float], ratios: Sequence[float]) -> list[float]:
    """The sizes at which a line through the logarithms goes from 1 or more to less, or back."""
    found = []
    logs = [math.log(ratio) for ratio in ratios]
    for place in range(1, len(sizes)):
        before, after = logs[place - 1], logs[place]
        if (before < 0) != (after < 0):
            share = before / (before - after)
            found.append(sizes[place - 1] * (sizes[place] / sizes[place - 1]) ** share)
    return found


def _workloads(sheet: Sheet) -> list[str]:
    ending = "_latency_ms"
    return [column.removesuffix(ending) for column in sheet.better if column.endswith(ending)]


def _points(sheet: Sheet, paired: Paired, method: str, baseline: str, column: str, workload: str) -> Iterator[Point]:
    for base in sheet.figures:
        row = (base[0], method)
        size = _billions(sheet, base)
        if base[1] != baseline or row not in sheet.figures or size is None:
            continue
        if workload and any(sheet.cells[side].get(f"{workload}_status") != "ok" for side in (row, base)):
            continue
        found = effect(sheet, paired, row, base, column, "ratio")
        if found.value is not None:
            low, high = found.interval or (found.value, found.value)
            yield Point(size, found.value, low * (1 - MARGIN), high * (1 + MARGIN))


def _billions(sheet: Sheet, base: Names) -> float | None:
    """Parameters in billions: by the bytes of 16-bit weights, else as the model is called."""
    weights = sheet.value(base, SIZE)
    return weights.value / 2e9 if weights and not sheet.cells[base].get("bits") else sheet.sizes[base]
