"""Rows of instruction data, written to files and read back from artifacts."""

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from effllm.artifact import Artifact
from effllm.data.instructions.samples import Message, Sample, read_samples

PAIRS = {"kind": "prompt_response"}
CHAT = {"kind": "chat"}
Prepare = Callable[..., Artifact]


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"Question {number}?", "response": f"Answer {number}, naïve 日本."} | changes


def chat(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def lines(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(gzip.compress(lines(rows)) if path.suffix == ".gz" else lines(rows))
    return path


def samples(artifact: Artifact, split: str | None = None) -> list[Sample]:
    return [s for name in ([split] if split else ["train", "held_out"]) for s in read_samples(artifact.directory, name)]


def conversations(artifact: Artifact) -> set[tuple[Message, ...]]:
    return {sample.messages for sample in samples(artifact)}
