"""What a table was assembled from, beside it: `results/.tables/<name>.json`.

Snakemake keeps such a record of its own; this one lets `effllm plan` and `effllm status` tell a table that is stale.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effllm.runtime.artifact import MANIFEST, digest_file, read_object, write_text

_DIRECTORY = ".tables"


def record_of(spec: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A table's spec, and the sha256 of what it reads: manifests by `<stage>/<id>`, tables by file name."""
    files = [Path(path) for paths in inputs.values() for path in paths]
    names = ["/".join(path.parts[-3:-1]) if path.name == MANIFEST else path.name for path in files]
    digests = {name: digest_file(path).sha256 for name, path in zip(names, files, strict=True)}
    return {"spec": dict(spec), "inputs": digests}


def write_record(table: Path, record: Mapping[str, Any]) -> None:
    """Keep the record of the table at `table`, with the sha256 of the table itself."""
    path = _path(table)
    path.parent.mkdir(exist_ok=True)
    content = {**record, "sha256": digest_file(table).sha256}
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_record(table: Path) -> dict[str, Any] | None:
    """The record of the table at `table`; None if there is none or it cannot be read."""
    try:
        record = read_object(_path(table))
    except (OSError, ValueError, TypeError):
        return None
    is_whole = isinstance(record.get("spec"), dict) and isinstance(record.get("inputs"), dict)
    return record if is_whole else None


def damage_of_table(table: Path) -> str | None:
    """A sentence if the table was changed after it was assembled, or its record cannot be read."""
    record = read_record(table)
    if record is None:
        return f"{_path(table)} is missing or not readable: nothing tells whether {table} was edited"
    try:
        # Tables of older versions have no digest in their record.
        if digest_file(table).sha256 == record.get("sha256", digest_file(table).sha256):
            return None
    except OSError as error:
        return f"{table} cannot be read ({error.strerror})"
    return f"{table} was changed after it was assembled"


def recorded_tables(results: Path) -> list[Path]:
    """The tables below `results` that a record exists of."""
    tables = [results / f"{path.stem}.csv" for path in sorted((results / _DIRECTORY).glob("*.json"))]
    return [table for table in tables if table.exists()]


def _path(table: Path) -> Path:
    return table.parent / _DIRECTORY / f"{table.stem}.json"
