"""Parquet, JSON and JSON-lines files, and the sentence that a damaged one gets."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effllm.errors import UserError, first_line

_HEAD_BYTES = 64
_COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4", ".zip", ".7z", ".tar", ".tgz")
_MAGIC = {
    b"\x1f\x8b": "compressed by gzip; let its name end in .jsonl.gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it (zstd -d)",
    b"BZh": "compressed by bzip2; decompress it (bunzip2)",
    b"\xfd7zXZ\0": "compressed by xz; decompress it (unxz)",
    b"PK\x03\x04": "a zip archive; unpack it (unzip)",
    b"PAR1": "a parquet file; let its name end in .parquet",
    b"version https://git-lfs": "a pointer of git-lfs and not the data; fetch that (git lfs pull)",
    b"<!DOCTYPE": "a web page and not the data; fetch it again",
    b"<html": "a web page and not the data; fetch it again",
}


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open `path`; while it is open, errors of its content become a `UserError` that names it."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    # Names of columns are decoded by the reader itself.
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # The operating system's own errors (rights, a vanished file) have a number and a name and explain themselves.
        if isinstance(error, OSError) and error.errno:
            raise
        reason = first_line(error).rstrip(".")
        raise UserError(f"{path} is not a whole parquet file ({reason}); fetch or write it again.") from None


def require_ending(path: Path, endings: Sequence[str]) -> None:
    """Raise `UserError` for a file whose name does not end in one of `endings`."""
    if path.name.endswith(tuple(endings)):
        return
    if path.suffix in _COMPRESSED:
        raise UserError(
            f"{path} is compressed ({path.suffix}), which is not read here: decompress it, or write .jsonl.gz."
        )
    raise UserError(f"{path}: the ending is unknown; use {', '.join(endings)} files.")


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "file, line number" and object of each line of a JSON-lines file (gzip by its ending), blank ones left out.

    `UserError` for a damaged file, for one that is something else, and for a line that is not a JSON object of text
    that UTF-8 can hold.
    """
    number = 0
    try:
        with _open_lines(path) as stream:
            _require_utf8_text(path, stream.peek(_HEAD_BYTES)[:_HEAD_BYTES])
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    where = f"{path}, line {number}"
                    yield where, _json_object(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if isinstance(error, gzip.BadGzipFile) and number == 0:
            raise UserError(f"{path} is not compressed by gzip; take .gz off its name, or fetch it again.") from None
        raise UserError(f"{path} is damaged after line {number} ({error}); fetch or write it again.") from None


def json_array(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON file that is one list of them, as medical-o1-reasoning-SFT is published; `UserError`."""
    content = path.read_bytes()
    _require_utf8_text(path, content[:_HEAD_BYTES])
    try:
        rows = _json(content.removeprefix(codecs.BOM_UTF8))
    except _NotJsonError as error:
        hint = "; if it has one object per line, name it .jsonl" if "Extra data" in str(error) else "; correct it"
        raise UserError(f"{path} is not JSON text ({error}){hint}.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is not a list of JSON objects; write one, or one object per line in a .jsonl file.")
    return rows


def _open_lines(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _require_utf8_text(path: Path, head: bytes) -> None:
    """Raise `UserError` that names what a file is, by its first bytes, if they are not those of text in UTF-8."""
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise UserError(f"{path} is {name}.")
    encoding = json.detect_encoding(head)
    if not head.strip(b"\0") and head:
        raise UserError(f"{path} begins with null bytes, as a file that was cut short does; fetch or write it again.")
    if not encoding.startswith("utf-8"):
        name = encoding.upper()[:6]
        raise UserError(f"{path} is text in {name}; write it in UTF-8 (iconv -f {name} -t UTF-8).")


class _NotJsonError(ValueError):
    """Not a text in JSON; the message says why."""


def _json(text: bytes) -> Any:
    """The value of a JSON text in UTF-8; raises `_NotJsonError`."""
    try:
        value = json.loads(text.decode(), parse_constant=_refuse_constant)
        # JSON can escape half of a surrogate pair, which no UTF-8 text holds.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _NotJsonError(f"byte {error.object[error.start]:#04x} at {error.start} is not UTF-8") from None
    except RecursionError:
        raise _NotJsonError("it is nested too deeply") from None
    except ValueError as error:
        raise _NotJsonError(error) from None
    return value


def _refuse_constant(name: str) -> None:
    raise _NotJsonError(f"{name} is no JSON number, null is what was not measured")


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = _json(line)
    except _NotJsonError as error:
        raise UserError(f"{where} is not JSON text ({error}); correct or remove the line.") from None
    if not isinstance(value, dict):
        hint = "; a file that is one list is named .json" if isinstance(value, list) else ""
        raise UserError(f"{where} is not a JSON object; write one object per line{hint}.")
    return value
