"""Documents from local parquet and JSON-lines files."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data.schema import SCHEMA, check_schema, conform
from effllm.errors import UserError

BATCH_DOCUMENTS = 1000
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
            if not path.name.endswith((".parquet", ".jsonl", ".jsonl.gz")):
                raise UserError(f"{path}: the ending is unknown; use .parquet, .jsonl or .jsonl.gz files.")
        self.label = f"{len(paths)} files"
        self.paths = paths
        rows = [_parquet_rows(path) for path in paths if path.suffix == ".parquet"]
        self.total = sum(rows) if len(rows) == len(paths) else None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the documents of all files; `UserError` names the file (and line, for JSON) that is at fault."""
        for path in self.paths:
            yield from _parquet_batches(path) if path.suffix == ".parquet" else _json_batches(path)


def _parquet_rows(path: Path) -> int:
    try:
        with _open_parquet(path) as file:
            check_schema(file.schema_arrow, str(path))
            return file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with _open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_DOCUMENTS, columns=SCHEMA.names):
                yield conform(batch, str(path))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _open_parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


def _damaged(path: Path, error: Exception) -> Exception:
    # The operating system's own errors (rights, a vanished file) have a number and a file name and explain themselves.
    if isinstance(error, OSError) and error.errno:
        return error
    reason = str(error).splitlines()[0].rstrip(".")
    return UserError(f"{path} is not a whole parquet file ({reason}); fetch or write it again.")


def _json_batches(path: Path) -> Iterator[pa.RecordBatch]:
    documents: list[dict[str, Any]] = []
    for document in _json_documents(path):
        documents.append(document)
        if len(documents) == BATCH_DOCUMENTS:
            yield conform(pa.RecordBatch.from_pylist(documents, schema=SCHEMA), str(path))
            documents = []
    if documents:
        yield conform(pa.RecordBatch.from_pylist(documents, schema=SCHEMA), str(path))


def _json_documents(path: Path) -> Iterator[dict[str, Any]]:
    with _open_lines(path) as stream:
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    yield _json_document(line, f"{path}, line {number}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is damaged after line {number} ({error}); fetch or write it again.") from None


def _open_lines(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _json_document(line: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
        # JSON can escape half of a surrogate pair, which no UTF-8 text holds.
        json.dumps(document, ensure_ascii=False).encode()
    except ValueError as error:
        raise UserError(f"{where} is not JSON text ({error}); correct or remove the line.") from None
    if not isinstance(document, dict):
        raise UserError(f"{where} is not a JSON object; write one object per line.")
    missing = [name for name in SCHEMA.names if name not in document]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; add it (null where it was not measured).")
    for field in SCHEMA:
        value = document[field.name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, _JSON_TYPES[field.type])):
            raise UserError(f"{where}: column {field.name} is {value!r} where {field.type} is needed; correct it.")
    return document
