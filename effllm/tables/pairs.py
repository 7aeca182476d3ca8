"""Every quality and cost of a row against its baseline's, paired item by item where items exist.

Each table has its own next to it, results/table<N>-pairs.csv; results/pairs.csv is all of them.
"""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from effllm.tables.cells import rounded
from effllm.tables.columns.shared import ENERGY_CONDITIONS, MEMORY_CONDITIONS
from effllm.tables.description import Column, Description
from effllm.tables.kinds import TABLES
from effllm.tables.members import Member
from effllm.tables.paired import PAIRS, REASONS, Change, ratio_change

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
_OWN_VALUES = "difference of two figures without a record by item"


def pairs(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """One row per row of a table that is no baseline, and quality or cost.

    `spec` is the `Graph.table_spec` of a table's pairs, `inputs` the manifests of the table's own artifacts by stage.
    Qualities are differences (PPL is a ratio), costs ratios. A change or an interval that is unknown is None, with a
    code.
    """
    name = spec["of"]
    kind = TABLES[name].kind
    members = list(kind.members(spec, inputs))
    rows = kind.assemble(spec, inputs)
    description = kind.columns
    described = description.columns(list(rows[0]))
    columns = [column for column in described.values() if column.role in ("quality", "cost") and not column.is_change]
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
    column: Column, row: Mapping[str, Any], base: Mapping[str, Any], member: Member, against: Member
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
