"""Documents from local parquet and JSON-lines files."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from effllm.data.schema import SCHEMA, check_schema, conform
from effllm.data.sources.reading import json_lines, open_parquet, require_ending
from effllm.errors import UserError
from effllm.fields import shortened
from effllm.hub.parquet import parquet_rows

BATCH_DOCUMENTS = 1000
_LARGEST = {pa.int64(): 2**63 - 1, pa.float64(): int(sys.float_info.max)}
_JSON_TYPES = {pa.string(): (str,), pa.int64(): (int,), pa.float64(): (int, float)}


class FilesSource:
    """Parquet (`.parquet`) and JSON-lines (`.jsonl`, `.jsonl.gz`) files, one after the other in the order given.

    Footers of all parquet files are read at once, so that a truncated last file is not found after hours.
    """

    scored = True

    def __init__(self, paths: Sequence[Path]):
        if not paths:
            raise UserError("the corpus has no input file: name them in source.paths (--input files=PATH by hand).")
        for path in paths:
            require_ending(path, (".parquet", ".jsonl", ".jsonl.gz"))
        self.label = f"{len(paths)} files"
        self.paths = paths
        rows = [_parquet_rows(path) for path in paths if path.suffix == ".parquet"]
        self.total = sum(rows) if len(rows) == len(paths) else None

    def units(self) -> list["FileUnit"]:
        """The files."""
        return [FileUnit(path) for path in self.paths]


class FileUnit:
    """One file; parquet is read from any row on, JSON lines as a whole."""

    def __init__(self, path: Path):
        self.label = str(path)
        self.is_seekable = path.suffix == ".parquet"
        self._path = path

    def fetch(self) -> None:
        """It is there."""

    def batches(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield its documents; `UserError` names the file (and line, for JSON) that is at fault."""
        if self.is_seekable:
            with open_parquet(self._path) as file:
                for batch in parquet_rows(file, names, start, stop, BATCH_DOCUMENTS):
                    yield conform(batch, self.label, names)
        else:
            yield from _json_batches(self._path, names)

    def release(self) -> None:
        """It is the user's."""


def _parquet_rows(path: Path) -> int:
    with open_parquet(path) as file:
        check_schema(file.schema_arrow, str(path))
        return file.metadata.num_rows


def _json_batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    documents: list[dict[str, Any]] = []
    for where, document in json_lines(path):
        documents.append(_checked(document, where))
        if len(documents) == BATCH_DOCUMENTS:
            yield _json_batch(documents, path, names)
            documents = []
    if documents:
        yield _json_batch(documents, path, names)


def _json_batch(documents: list[dict[str, Any]], path: Path, names: Sequence[str]) -> pa.RecordBatch:
    return conform(pa.RecordBatch.from_pylist(documents, schema=SCHEMA), str(path), names)


def _checked(document: dict[str, Any], where: str) -> dict[str, Any]:
    missing = [name for name in SCHEMA.names if name not in document]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; add it (null where it was not measured).")
    values = {}
    for field in SCHEMA:
        value = document[field.name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, _JSON_TYPES[field.type])):
            raise UserError(
                f"{where}: column {field.name} is {shortened(value)} where {field.type} is needed; correct it."
            )
        if isinstance(value, int) and abs(value) > _LARGEST[field.type]:
            raise UserError(
                f"{where}: column {field.name} is {shortened(value)}, too large for {field.type}; correct it."
            )
        values[field.name] = float(value) if isinstance(value, int) and field.type == pa.float64() else value
    return values
