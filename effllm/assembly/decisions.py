"""results/ranks.csv, comparison.csv, claims.csv, crossover.csv: what the study's tables and the published ones say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effllm.decision.claims import audit
from effllm.decision.comparison import Ours, comparison
from effllm.decision.crossover import crossover_rows
from effllm.decision.effects import Paired, read_paired
from effllm.decision.paper import CLAIMS, published_file
from effllm.decision.ranks import rank_rows
from effllm.decision.rows import read_table
from effllm.decision.sheet import Sheet, sheet_of_published, sheet_of_table
from effllm.decision.statements import read_claims
from effllm.tables.cells import rounded

TABLES = "tables"
Rows = list[dict[str, Any]]
Inputs = Mapping[str, list[str]]


def ranks(spec: Mapping[str, Any], inputs: Inputs) -> Rows:
    """Ranks of the study's tables, and of their published counterparts.

    `inputs` are the paths of the tables and, next to them, of their pairs; `spec` is `Graph.table_spec("ranks")`.
    """
    sheets, paired = _ours(inputs)
    rows = [row for sheet in sheets.values() for row in rank_rows(sheet, "ours", paired)]
    rows += [row for sheet in _published(spec).values() for row in rank_rows(sheet, "published")]
    return _rounded(rows)


def compared(spec: Mapping[str, Any], inputs: Inputs) -> Rows:
    """The study's tables and the published ones side by side, and the findings in the latter."""
    sheets, paired = _ours(inputs)
    tables = spec["config"]["tables"]
    ours = {
        name: Ours(sheet, tables[name]["baseline"], frozenset(tables[name]["benchmarks"]))
        for name, sheet in sheets.items()
    }
    return _rounded(comparison(ours, _published(spec), paired))


def claims(spec: Mapping[str, Any], inputs: Inputs) -> Rows:
    """The audit of the paper's claims over the study's tables, then over the published values."""
    sheets, paired = _ours(inputs)
    stated = read_claims(published_file(CLAIMS, spec["config"]["claims"]))
    return _rounded([*audit(stated, sheets, "ours", paired), *audit(stated, _published(spec), "published")])


def crossovers(spec: Mapping[str, Any], inputs: Inputs) -> Rows:
    """From which size on each precision saves something, by the study's table of precisions."""
    sheets, paired = _ours(inputs)
    config = spec["config"]
    (sheet,) = sheets.values()
    return _rounded(crossover_rows(sheet, paired, config["baseline"], config["workload"], config["batch_sizes"]))


def _ours(inputs: Inputs) -> tuple[dict[str, Sheet], Paired]:
    tables = [read_table(Path(path)) for path in inputs[TABLES]]
    return {table.path.stem: sheet_of_table(table) for table in tables}, read_paired(tables)


def _published(spec: Mapping[str, Any]) -> dict[str, Sheet]:
    digests = spec["config"]["published"]
    return {name: sheet_of_published(published_file(f"{name}.csv", sha256)) for name, sha256 in digests.items()}


def _rounded(rows: Rows) -> Rows:
    return [{column: rounded(value) for column, value in row.items()} for row in rows]
