"""Parquet and JSON-lines files, and the sentence that a damaged one gets."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from effllm.errors import UserError


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open `path`; while it is open, errors of its content become a `UserError` that names it."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        # The operating system's own errors (rights, a vanished file) have a number and a name and explain themselves.
        if isinstance(error, OSError) and error.errno:
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path} is not a whole parquet file ({reason}); fetch or write it again.") from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "file, line number" and object of each line of a JSON-lines file (gzip by its ending), blank ones left out.

    `UserError` for a damaged file, and for a line that is not a JSON object of text that UTF-8 can hold.
    """
    with _open_lines(path) as stream:
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    where = f"{path}, line {number}"
                    yield where, _json_object(line, where)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is damaged after line {number} ({error}); fetch or write it again.") from None


def _open_lines(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
        # JSON can escape half of a surrogate pair, which no UTF-8 text holds.
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise UserError(f"{where} is not JSON text ({error}); correct or remove the line.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object; write one object per line.")
    return value
