"""What the columns of a table are for a decision: names, qualities, costs, conditions, and which way is better.

A table's description is declared in `effllm/tables/columns/`, and its kind names it. Nothing here imports a library, so
that a decision from a CSV starts at once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["name", "quality", "cost", "setting", "condition", "bound", "status"]
"""name: tells rows of a table apart. quality: how good the model is. cost: what it takes, or how fast it is. setting:
what the technique is made of. condition: where and how it was measured. bound: an end of another column's interval, or
the direction of its metric. status: whether the row counts, and why not."""
Better = Literal["lower", "higher"]
ANY = "*"


@dataclass(frozen=True)
class Column:
    """One column, or with a `*` in its name a family of them (`*_latency_ms`, one per workload).

    unit: empty for a ratio, a count or a text. label: what a sentence calls it. better: None where neither way is.
    interval: the columns of the lower and upper end of its 95 % interval; None where the table gives none.
    conditions: columns that must be equal in two rows before this column of them is compared (the scope of an energy).
    points: differences are counted in points (hundredths of the unit 1) and not in per cent of the value.
    direction: the column that holds `lower` or `higher` where that differs by family member.
    is_change: the figure is itself against another row's, so that no pair is made of it.
    """

    name: str
    role: Role
    unit: str = ""
    label: str = ""
    better: Better | None = None
    interval: tuple[str, str] | None = None
    conditions: tuple[str, ...] = ()
    points: bool = False
    direction: str | None = None
    is_change: bool = False

    @property
    def text(self) -> str:
        """What a sentence calls the column."""
        return self.label or self.name.replace("_", " ")

    def member(self, member: str) -> "Column":
        """The column of one member of the family: every `*` replaced."""

        def fill(text: str) -> str:
            return text.replace(ANY, member)

        interval = (fill(self.interval[0]), fill(self.interval[1])) if self.interval else None
        label = f"{self.text.replace(ANY, '').strip()} ({member})"
        direction = fill(self.direction) if self.direction else None
        return replace(self, name=fill(self.name), label=label, interval=interval, direction=direction)


Unfold = Callable[[Sequence[str]], Iterable[Column]]
"""From a header, the columns that no pattern tells: those that are named by a label of the study."""


@dataclass(frozen=True)
class Description:
    """What a table is about, and its columns.

    title: what its rows differ in. names: the columns that name a row. subject: the one of them that says to what a
    technique was applied. signature: columns that, with the names, no other kind of table has. quality: the column that
    decides how good a row is. costs: the costs by which rows are compared unless the user names others. scope: columns
    that must be equal before two rows are compared at all. workloads: for each column of the table's own workload, the
    family that has the same of the others. workload_costs: the costs by which rows are compared under another workload.
    of_any_workload: costs that are the same under each. unfold: columns that only the header tells.
    """

    title: str
    names: tuple[str, ...]
    subject: str
    signature: tuple[str, ...]
    quality: str
    costs: tuple[str, ...]
    scope: tuple[str, ...]
    declared: tuple[Column, ...]
    workloads: Mapping[str, str] = field(default_factory=dict)
    workload_costs: tuple[str, ...] = ()
    of_any_workload: tuple[str, ...] = ()
    unfold: Unfold | None = None

    def fits(self, header: Sequence[str]) -> bool:
        """Whether a CSV with this header is such a table."""
        return set(self.names) | set(self.signature) <= set(header)

    def columns(self, header: Sequence[str]) -> dict[str, Column]:
        """The described columns of a header by name, in its order; a column that nothing describes is left out.

        The longest pattern wins where several match, and what is declared under its own name wins over patterns.
        """
        plain = {column.name: column for column in self.declared if ANY not in column.name}
        for column in self.unfold(header) if self.unfold else ():
            plain.setdefault(column.name, column)
        patterns = sorted((c for c in self.declared if ANY in c.name), key=lambda c: -len(c.name))
        bounds = {bound for column in plain.values() for bound in _bounds(column)}
        found: dict[str, Column] = {}
        for name in header:
            described = plain.get(name) or (None if name in bounds else _member(name, patterns))
            if described:
                found[name] = described
        for column in list(found.values()):
            for bound in _bounds(column):
                if bound in header:
                    found[bound] = Column(bound, "bound")
        return {name: found[name] for name in header if name in found}


def _bounds(column: Column) -> tuple[str, ...]:
    return (*(column.interval or ()), *((column.direction,) if column.direction else ()))


def _member(name: str, patterns: Iterable[Column]) -> Column | None:
    for pattern in patterns:
        before, _, after = pattern.name.partition(ANY)
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
            return pattern.member(name[len(before) : len(name) - len(after) if after else None])
    return None
