"""The figures of one table by row and column, whoever measured them: a table of this project, or a published one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from effllm.decision.published import COLUMNS, Published, read_published
from effllm.decision.rows import Figure, Table
from effllm.tables.columns.shared import ENERGY_CONDITIONS, MEMORY_CONDITIONS
from effllm.tables.description import Column
from effllm.tables.descriptions import DESCRIPTIONS

Names = tuple[str, str]
"""What names a row, in the order of the table's columns."""

TECHNIQUES = ("method", "precision")
"""Columns that name what rows of one group differ in; the other column of a row's names is its group."""
# Which card it was is within the margin that costs of one run each are given; the others concern some columns alone.
_NOT_IN_SCOPE = {"device_id", *ENERGY_CONDITIONS, *MEMORY_CONDITIONS}
# The names of diffusion transformers do not say how large they are; the paper does.
_TRANSFORMERS = {"DiT-XL/2": 0.675, "DiT-L/8": 0.458, "DiT-B/4": 0.130}
_NOMINAL = re.compile(r"(\d+(?:\.\d+)?)([BM])(?![a-z])")
_BILLIONS = {"B": 1.0, "M": 1e-3}


@dataclass(frozen=True)
class Sheet:
    """One table.

    keys: the two columns that name a row. figures: measured figures by row and column, of rows that count. left_out:
    rows that do not, and why. cells: settings and conditions as text, by row. scope: what two rows must have in common
    before costs are compared. better: `lower` or `higher` by column. costs: columns that are costs. sizes: parameters
    in billions, by row where known. is_published: intervals are limits of rounding and reading, not of sampling.
    """

    name: str
    keys: tuple[str, str]
    figures: Mapping[Names, Mapping[str, Figure]]
    left_out: Mapping[Names, str]
    cells: Mapping[Names, Mapping[str, str | None]]
    scope: tuple[str, ...]
    better: Mapping[str, str]
    costs: frozenset[str]
    sizes: Mapping[Names, float | None]
    is_published: bool
    published: Mapping[tuple[Names, str], Published] = field(default_factory=dict)

    @property
    def technique(self) -> int:
        """Which of a row's two names says what rows of a group differ in."""
        return next((index for index, key in enumerate(self.keys) if key in TECHNIQUES), 1)

    def technique_of(self, row: Names) -> str:
        """The method or precision of a row."""
        return row[self.technique]

    def group_of(self, row: Names) -> str:
        """The model, or the nominal size, of a row."""
        return row[1 - self.technique]

    def groups(self) -> dict[str, list[Names]]:
        """The rows that count, by group, in the table's order."""
        groups: dict[str, list[Names]] = {}
        for row in self.figures:
            groups.setdefault(self.group_of(row), []).append(row)
        return groups

    def partner(self, row: Names, technique: str) -> Names | None:
        """The row of another technique in the same group; where it has none, that technique's first row."""
        rows = [other for other in (*self.figures, *self.left_out) if self.technique_of(other) == technique]
        same = [other for other in rows if self.group_of(other) == self.group_of(row)]
        return next(iter(same or rows), None)

    def conditions(self, row: Names) -> tuple[str | None, ...]:
        """What `scope` names, of one row."""
        return tuple(self.cells.get(row, {}).get(name) for name in self.scope)

    def value(self, row: Names, column: str) -> Figure | None:
        """One figure; None where there is none that counts."""
        return self.figures.get(row, {}).get(column)


def is_published(path: Path) -> bool:
    """Whether a CSV has the header of the published tables, config/paper/table<N>.csv."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\r\n").endswith("," + ",".join(COLUMNS))


def sheet_of_table(table: Table) -> Sheet:
    """A table of this project."""
    measured = {name: column for name, column in table.columns.items() if column.role in ("quality", "cost")}
    directions = {name: table.direction(name) for name in measured}
    figures: dict[Names, Mapping[str, Figure]] = {}
    left_out: dict[Names, str] = {}
    sizes: dict[Names, float | None] = {}
    for row in table.rows:
        names = (row.names[0], row.names[1])
        total = row.figures.get("parameters_total")
        sizes[names] = total.value / 1e9 if total else nominal_billions(names)
        if row.status != "ok":
            left_out[names] = f"{row.status}: {row.reason}"
            continue
        figures[names] = {**row.figures, **_settings(row.cells)}
    return Sheet(
        table.path.stem,
        (table.description.names[0], table.description.names[1]),
        figures,
        left_out,
        {(row.names[0], row.names[1]): row.cells for row in table.rows},
        tuple(name for name in table.description.scope if name not in _NOT_IN_SCOPE),
        {name: better for name, better in directions.items() if better},
        frozenset(name for name, column in measured.items() if column.role == "cost"),
        sizes,
        is_published=False,
    )


def sheet_of_published(path: Path) -> Sheet:
    """A published table, config/paper/table<N>.csv. UserError as `read_published`."""
    figures: dict[Names, dict[str, Figure]] = {}
    published = {}
    keys = ("", "")
    for figure in read_published(path):
        first, second = figure.keys
        keys = (first, second)
        names = (figure.keys[first], figure.keys[second])
        figures.setdefault(names, {})[figure.metric] = Figure(figure.value, *(figure.interval or (None, None)))
        published[names, figure.metric] = figure
    metrics = list(dict.fromkeys(metric for row in figures.values() for metric in row))
    better, costs = _directions(path.stem, metrics)
    sizes = {names: nominal_billions(names) for names in figures}
    return Sheet(path.stem, keys, figures, {}, {}, (), better, costs, sizes, is_published=True, published=published)


def nominal_billions(names: Names) -> float | None:
    """Nominal parameters in billions, from a name such as `Llama-3.2-1B` or `0.5Bx8`; None where none says it."""
    found = [match for name in names if (match := _NOMINAL.search(name))]
    if not found:
        return next((_TRANSFORMERS[name] for name in names if name in _TRANSFORMERS), None)
    return float(found[0][1]) * _BILLIONS[found[0][2]]


def _directions(table: str, metrics: list[str]) -> tuple[dict[str, str], frozenset[str]]:
    """Which way each published metric is better, and which are costs; what no table declares is a benchmark's score."""
    known: dict[str, Column] = {}
    # Table 13 is of no kind that this project assembles: its columns are those of others.
    for name in (table, "table3", "table7", "table9"):
        for column in DESCRIPTIONS[name].declared if name in DESCRIPTIONS else ():
            known.setdefault(column.name, column)
    better: dict[str, str] = {name: (known[name].better or "lower") if name in known else "higher" for name in metrics}
    return better, frozenset(name for name in metrics if name in known and known[name].role == "cost")


def _settings(cells: Mapping[str, str | None]) -> dict[str, Figure]:
    """Settings that are numbers, so that pairs can be held to have them in common."""
    return {
        name: Figure(float(text)) for name in ("PCU", "samples_per_step") if (text := cells.get(name)) not in (None, "")
    }
