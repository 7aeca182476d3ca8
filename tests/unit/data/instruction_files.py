"""Rows of instruction data, written to files and read back from artifacts."""

from collections.abc import Callable
from typing import Any

from effllm.data.instructions.samples import Message, Sample, read_samples
from effllm.runtime.artifact import Artifact

PAIRS = {"kind": "prompt_response"}
CHAT = {"kind": "chat"}
Prepare = Callable[..., Artifact]


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"Question {number}?", "response": f"Answer {number}, naïve 日本."} | changes


def chat(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def samples(artifact: Artifact, split: str | None = None) -> list[Sample]:
    return [s for name in ([split] if split else ["train", "held_out"]) for s in read_samples(artifact.directory, name)]


def conversations(artifact: Artifact) -> set[tuple[Message, ...]]:
    return {sample.messages for sample in samples(artifact)}
