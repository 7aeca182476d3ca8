"""What a report is made from: one results directory, or any directory with this project's tables."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.decision.rows import Table, read_table
from effllm.errors import UserError
from effllm.report.listings import Sheet, read_sheet
from effllm.runtime.artifact import PROVENANCE, read_object
from effllm.tables.descriptions import DESCRIPTIONS
from effllm.tables.paired import PAIRS, pairs_of
from effllm.tables.record import read_record

SHEETS = (*map(pairs_of, DESCRIPTIONS), PAIRS, "comparison", "ranks", "claims", "crossover", "validity", "scaling")
"""The other CSVs that a report shows where they exist."""
PLAN = "plan.json"


@dataclass(frozen=True)
class Made:
    """How one artifact came to be: its digest in the table's record, and its provenance (None where that was lost)."""

    name: str
    sha256: str
    provenance: Mapping[str, Any] | None

    @property
    def seconds(self) -> float | None:
        """How long it took; None where that is not known."""
        seconds = (self.provenance or {}).get("wall_s")
        return float(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else None


@dataclass(frozen=True)
class Run:
    """One results directory.

    tables and their texts by name; sheets by name, those that exist; study: its name, None where no record tells it;
    made: the artifacts behind the tables, each once, sorted; plan: what `effllm plan --json` said before, if it was
    kept as plan.json.
    """

    directory: Path
    tables: Mapping[str, Table]
    texts: Mapping[str, str]
    sheets: Mapping[str, Sheet]
    study: str | None
    specs: Mapping[str, Mapping[str, Any]]
    made: tuple[Made, ...]
    plan: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """What the page calls it: the study's name, or the directory's."""
        return self.study or self.directory.resolve().name


def read_run(directory: Path, names: Collection[str] | None = None) -> Run:
    """Read the tables and what lies with them.

    names: those of the CSVs that count; all that are there if left out.

    Raises:
        UserError: the directory or every table is missing, or a file in it is damaged.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; give one with tables, such as results.")
    paths = {name: directory / f"{name}.csv" for name in DESCRIPTIONS}
    counts = (lambda path: path.stem in names) if names is not None else Path.is_file
    paths = {name: path for name, path in paths.items() if counts(path)}
    if not paths:
        raise UserError(
            f"{directory} holds none of {', '.join(f'{name}.csv' for name in DESCRIPTIONS)}; build a table first: "
            f"snakemake --profile profiles/local {directory}/table9.csv."
        )
    tables = {name: read_table(path) for name, path in paths.items()}
    records = {name: record for name, path in paths.items() if (record := read_record(path))}
    sheets = {name: read_sheet(path) for name in SHEETS if counts(path := directory / f"{name}.csv")}
    digests = {name: sha256 for record in records.values() for name, sha256 in record["inputs"].items()}
    specs = {name: record["spec"] for name, record in records.items()}
    studies = dict.fromkeys(str(spec["study"]) for spec in specs.values() if spec.get("study"))
    return Run(
        directory=directory,
        tables=tables,
        texts={name: path.read_text(encoding="utf-8") for name, path in paths.items()},
        sheets=sheets,
        study=" and ".join(studies) or None,
        specs=specs,
        made=tuple(Made(name, digests[name], _provenance(directory / name)) for name in sorted(digests)),
        plan=_plan(directory / PLAN),
    )


def _provenance(artifact: Path) -> Mapping[str, Any] | None:
    try:
        return read_object(artifact / PROVENANCE)
    except (OSError, ValueError, TypeError):
        return None


def _plan(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        plan = read_object(path)
        if all(isinstance(node["name"], str) for node in plan["nodes"]):
            return plan
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{path} is not what `effllm plan --json` prints; write it again, or delete it.")
