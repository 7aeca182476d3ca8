"""Files of JSON lines."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def lines(rows: Iterable[Any]) -> bytes:
    """One line of JSON for each row, in UTF-8."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write a file of JSON lines, compressed where its name ends in .gz."""
    path.write_bytes(gzip.compress(lines(rows)) if path.suffix == ".gz" else lines(rows))
    return path
