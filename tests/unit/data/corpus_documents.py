"""Documents in FineWeb-Edu's shape, written to files and read back from artifacts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data.schema import SCHEMA
from effllm.runtime.artifact import Artifact


def document(number: int, **changes: Any) -> dict[str, Any]:
    """One scored English document whose text no other number has."""
    values = {
        "text": f"Document {number} says that {number * 7919 % 10_007} follows {number % 13}, naturellement.\n" * 3,
        "id": f"<urn:uuid:{number:08d}>",
        "dump": "CC-MAIN-2024-10",
        "url": f"https://example.org/{number}",
        "file_path": "crawl-data/1.warc.gz",
        "language": "en",
        "language_score": 0.9,
        "token_count": 50,
        "score": 3.2,
        "int_score": 3,
    }
    return values | changes


def documents(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [document(number, **changes) for number in range(count)]


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA, **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)
    return path


def kept(artifact: Artifact, split: str) -> list[dict[str, Any]]:
    """The documents of a split, all shards in order."""
    return [row for path in sorted(artifact.directory.glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def kept_ids(artifact: Artifact) -> dict[str, set[str]]:
    return {split: {row["id"] for row in kept(artifact, split)} for split in ("train", "held_out")}
