"""Groups of rows that may be compared: measured on one device, under the same conditions."""

from collections.abc import Sequence
from dataclasses import dataclass

from effllm.decision.rows import Row, Table


@dataclass(frozen=True)
class Scope:
    """Rows that agree in every condition that both of two state.

    conditions: its value by condition, None where no row states it.
    """

    conditions: dict[str, str | None]
    rows: tuple[Row, ...]


def scopes(table: Table, rows: Sequence[Row], ignored: Sequence[str] = ()) -> list[Scope]:
    """The rows in groups, in the order in which each group's first row comes.

    Where no quality was measured, rows of different subjects do not compare either: the smaller model would always win.

    A row that states nothing of a condition (it was not measured) goes with the one group that it contradicts nowhere;
    where there are several, it is a group of its own. ignored: conditions that may differ within a group.
    """
    description = table.description
    has_quality = any(description.quality in row.figures for row in rows)
    wanted = description.scope if has_quality else dict.fromkeys((description.subject, *description.scope))
    names = [name for name in wanted if name in table.columns and name not in ignored]

    def key(row: Row) -> tuple[str | None, ...]:
        return tuple(_condition(row, name) for name in names)

    groups: dict[tuple[str | None, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    # The most complete first, so that what states less finds its group whatever the order of rows.
    merged: dict[tuple[str | None, ...], list[Row]] = {}
    for values in sorted(groups, key=lambda values: (values.count(None), str(values))):
        into = [other for other in merged if _agree(values, other)]
        target = into[0] if len(into) == 1 else values
        merged.setdefault(target, []).extend(groups[values])
    found = [
        Scope(dict(zip(names, values, strict=True)), tuple(sorted(members, key=lambda row: row.number)))
        for values, members in merged.items()
    ]
    return sorted(found, key=lambda scope: scope.rows[0].number)


def differing(found: Sequence[Scope]) -> list[str]:
    """The conditions in which the scopes differ."""
    names = found[0].conditions if found else {}
    return [name for name in names if len({scope.conditions[name] for scope in found}) > 1]


def _condition(row: Row, name: str) -> str | None:
    if name in row.cells:
        return row.cells[name]
    figure = row.figures.get(name)
    return None if figure is None else f"{figure.value:g}"


def _agree(one: Sequence[str | None], other: Sequence[str | None]) -> bool:
    return all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))
