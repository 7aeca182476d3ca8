"""What a table was assembled from, beside it: `results/.tables/<name>.json`.

Snakemake keeps such a record of its own; this one lets `effllm plan` and `effllm status` tell a table that is stale.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effllm.artifact import digest_file, write_text

_DIRECTORY = ".tables"


def record_of(spec: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A table's spec, and the sha256 of every manifest that it reads by `<stage>/<id>`."""
    manifests = [Path(path) for paths in inputs.values() for path in paths]
    digests = {"/".join(path.parts[-3:-1]): digest_file(path).sha256 for path in manifests}
    return {"spec": dict(spec), "inputs": digests}


def write_record(table: Path, record: Mapping[str, Any]) -> None:
    """Keep the record of the table at `table`."""
    path = _path(table)
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_record(table: Path) -> dict[str, Any] | None:
    """The record of the table at `table`; None if there is none or it cannot be read."""
    try:
        return json.loads(_path(table).read_text())
    except (OSError, ValueError):
        return None


def _path(table: Path) -> Path:
    return table.parent / _DIRECTORY / f"{table.stem}.json"
