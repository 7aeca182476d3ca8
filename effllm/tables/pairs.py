"""Every quality and cost of a row against its baseline's, paired item by item where items exist.

Each table has its own next to it, results/table<N>-pairs.csv; results/pairs.csv is all of them.
"""

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from effllm.decision.description import Column, Description
from effllm.decision.paired import PAIRS, REASONS, Change, Code, ratio_change
from effllm.tables.artifacts import Result, read_results
from effllm.tables.benchmarks import scores_by_benchmark
from effllm.tables.cells import rounded
from effllm.tables.columns import DESCRIPTIONS
from effllm.tables.columns.shared import ENERGY_CONDITIONS, MEMORY_CONDITIONS
from effllm.tables.finetuning import finetuning_table
from effllm.tables.items import (
    Items,
    compare,
    compare_mean,
    items_of_evaluation,
    items_of_finetuning,
    items_of_pretraining,
)
from effllm.tables.pretraining import pretraining_table
from effllm.tables.quantization import table9

Results = Mapping[str, Mapping[str, Result]]
PAIR_COLUMNS = (
    "table",
    "row",
    "baseline",
    "column",
    "role",
    "better",
    "measure",
    "value",
    "baseline_value",
    "change",
    "low",
    "high",
    "method",
    "items",
    "clusters",
    "differing",
    "bound",
    "reason_code",
    "reason",
)
CARD = "device_id"
MEANS = ("average_performance", "mean")
_OWN_VALUES = "difference of two figures without a record by item"


@dataclass(frozen=True)
class _Member(ABC):
    """One row of a table: where it is, and where the row that it is compared with is."""

    index: int
    against: int

    @abstractmethod
    def change(self, column: str, base: Any) -> Change | None:
        """The paired change of a quality against another member; None where no record by item tells of it."""


@dataclass(frozen=True)
class _Trained(_Member):
    """A row of Tables 3 to 8, with its held-out losses in nats per token."""

    held_out: Items | Code

    def change(self, column: str, base: "_Trained") -> Change | None:
        """Of the loss, and of the perplexity, which is a ratio."""
        if column == "held_out_loss":
            return compare(self.held_out, base.held_out)
        return _exponential(compare(self.held_out, base.held_out)) if column == "PPL" else None


@dataclass(frozen=True)
class _Scored(_Member):
    """A row of Tables 9 and 16, with its answers by column; `mean` are the columns that the mean is over."""

    answers: Mapping[str, Items | Code]
    mean: tuple[str, ...]

    def change(self, column: str, base: "_Scored") -> Change | None:
        """Of one benchmark's score, or of their mean."""
        if column in MEANS:
            return compare_mean(*([side.answers[name] for name in self.mean] for side in (self, base)))
        return compare(self.answers[column], base.answers[column])


def pairs(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """One row per row of a table that is no baseline, and quality or cost.

    `spec` is the `Graph.table_spec` of a table's pairs, `inputs` the manifests of the table's own artifacts by stage.
    Qualities are differences (PPL is a ratio), costs ratios. A change or an interval that is unknown is None, with a
    code.
    """
    name = spec["of"]
    assemble_rows, members = _kind(spec, {stage: read_results(stage, paths) for stage, paths in inputs.items()})
    rows = assemble_rows(spec, inputs)
    description = DESCRIPTIONS[name]
    described = description.columns(list(rows[0]))
    columns = [column for column in described.values() if column.role in ("quality", "cost")]
    found = []
    for member in members:
        if member.against == member.index:
            continue
        row, base = rows[member.index], rows[member.against]
        labels = [" ".join(str(side[key]) for key in description.names) for side in (row, base)]
        for column in columns:
            change, measure = _change(column, row, base, member, members[member.against])
            if column.role == "cost" and change.value is not None:
                change = _under_conditions(change, _differing(column, description, row, base))
            cells = (name, *labels, column.name, column.role, _better(column, row), measure)
            values = (row[column.name], base[column.name], *_cells(change, row, base))
            found.append(dict(zip(PAIR_COLUMNS, (*cells, *map(rounded, values)), strict=True)))
    return found


def all_pairs(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows of the tables' own pairs, one table after the other, cells as they are written there."""
    found: list[dict[str, Any]] = []
    for path in map(Path, inputs[PAIRS]):
        with path.open(newline="", encoding="utf-8") as file:
            found += [{name: cell or None for name, cell in line.items()} for line in csv.DictReader(file)]
    return found


def _change(
    column: Column, row: Mapping[str, Any], base: Mapping[str, Any], member: _Member, against: _Member
) -> tuple[Change, str]:
    value, other = row[column.name], base[column.name]
    if column.role == "cost":
        failed = next((side["status"] for side in (row, base) if side["status"] != "ok"), None)
        if failed:
            return Change(None, code="invalid" if failed == "invalid" else "failed"), "ratio"
        return ratio_change(value, other, _interval(column, row), _interval(column, base)), "ratio"
    measure = "ratio" if column.name == "PPL" else "difference"
    if value is None or other is None:
        return Change(None, code="not_measured"), measure
    change = member.change(column.name, against)
    if change is None:
        return Change(value - other, method=_OWN_VALUES, code="no_interval"), measure
    return change, measure


def _differing(column: Column, description: Description, row: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """The conditions of a cost that are not the same in both rows."""
    # Whose memory and which power was measured concerns the columns of memory and power alone.
    of_some = {*ENERGY_CONDITIONS, *MEMORY_CONDITIONS}
    conditions = [name for name in description.scope if name not in of_some] + list(column.conditions)
    return [name for name in conditions if row.get(name) != base.get(name)]


def _under_conditions(change: Change, differing: list[str]) -> Change:
    if differing == [CARD]:
        return replace(change, interval=None, method=None, code="other_card")
    return Change(None, code="other_conditions") if differing else change


def _cells(change: Change, row: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[Any, ...]:
    low, high = change.interval or (None, None)
    reason = REASONS[change.code] if change.code else None
    if change.code in ("failed", "invalid"):
        side = next((side for side in (row, base) if side["status"] != "ok"), None)
        reason = f"{reason}: {side['reason']}" if side else reason
    counts = (change.items, change.clusters, change.differing)
    return (change.value, low, high, change.method, *counts, change.bound, change.code, reason)


def _better(column: Column, row: Mapping[str, Any]) -> str | None:
    return row.get(column.direction) if column.direction else column.better


def _interval(column: Column, row: Mapping[str, Any]) -> tuple[float, float] | None:
    low, high = (row.get(bound) for bound in column.interval or ("", ""))
    return None if low is None or high is None else (low, high)


def _kind(table: Mapping[str, Any], results: Results) -> tuple[Callable[..., list[dict[str, Any]]], list[Any]]:
    """The assembler of a table's rows, and its members in their order."""
    config = table["config"]
    if "rows" in config:
        return pretraining_table, list(_architectures(config["rows"], table["baseline"], results["pretrain"]))
    if "suite" in config:
        return finetuning_table, list(_methods(config, table["baseline"], results["finetune"]))
    return (table9 if "workload" in config else scores_by_benchmark), list(_precisions(table, results["evaluate"]))


def _architectures(rows: list[dict[str, Any]], baseline: str, results: Mapping[str, Result]) -> Iterator[_Trained]:
    """Against the baseline method at the same nominal size; where it has none, at the size that comes first."""
    sizes = {row["parameters"]: index for index, row in enumerate(rows) if row["method"] == baseline}
    for index, row in enumerate(rows):
        against = index if row["method"] == baseline else sizes.get(row["parameters"], min(sizes.values()))
        yield _Trained(index, against, items_of_pretraining([results[id] for id in row["runs"]]))


def _methods(suite: Mapping[str, Any], baseline: str, results: Mapping[str, Result]) -> Iterator[_Trained]:
    methods = suite["methods"]
    for index, (model, method) in enumerate(product(suite["models"], methods)):
        against = index - methods.index(method) + methods.index(baseline)
        yield _Trained(index, against, items_of_finetuning(results[f"{model}.{suite['suite']}.{method}"]))


def _precisions(table: Mapping[str, Any], results: Mapping[str, Result]) -> Iterator[_Scored]:
    config = table["config"]
    precisions = config["precisions"]
    for index, (model, precision) in enumerate(product(config["models"], precisions)):
        against = index - precisions.index(precision) + precisions.index(table["baseline"])
        scored = {id: results[f"{model}.{precision}.{id}"] for id in config["benchmarks"]}
        columns = {id: f"{id}_score" if "workload" in config else table["benchmark_labels"][id] for id in scored}
        answers = {columns[id]: items_of_evaluation(result) for id, result in scored.items()}
        accuracies = [id for id, result in scored.items() if result.content and result.content.role == "accuracy"]
        yield _Scored(index, against, answers, tuple(columns[id] for id in accuracies))


def _exponential(change: Change) -> Change:
    """The ratio of perplexities that a difference of losses is."""
    if change.value is None:
        return change
    interval = (math.exp(change.interval[0]), math.exp(change.interval[1])) if change.interval else None
    return replace(change, value=math.exp(change.value), interval=interval)
