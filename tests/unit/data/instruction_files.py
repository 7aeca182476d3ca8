"""Rows of instruction data and their images, written to files and read back from artifacts."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from effllm.data.instructions.prepare import prepare
from effllm.data.instructions.samples import Message, Sample, read_samples
from effllm.data.instructions.settings import Instructions
from effllm.data.instructions.sources import open_source
from effllm.results.data import InstructionsSummary
from effllm.runtime.artifact import Artifact

PAIRS = {"kind": "prompt_response"}
CHAT = {"kind": "chat"}
QUESTION = "How many?"
Prepare = Callable[..., Artifact]


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"Question {number}?", "response": f"Answer {number}, naïve 日本."} | changes


def chat(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def samples(artifact: Artifact, split: str | None = None) -> list[Sample]:
    return [s for name in ([split] if split else ["train", "held_out"]) for s in read_samples(artifact.directory, name)]


def conversations(artifact: Artifact) -> set[tuple[Message, ...]]:
    return {sample.messages for sample in samples(artifact)}


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def random_picture(seed: int, width: int = 12, height: int = 9) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def prepared(
    root: Path, files: dict[str, bytes], rows: list[dict[str, Any]], folder: str | None = None, **columns: str
) -> InstructionsSummary:
    (root / "images").mkdir(parents=True)
    for name, content in files.items():
        (root / "images" / name).write_bytes(content)
    (root / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = Instructions.model_validate(
        {
            "source": {
                "kind": "files",
                "paths": [str(root / "rows.jsonl")],
                "images": [str(root / "images" / "*.png")],
                "image_folder": folder and str(root / folder),
                "columns": {"kind": "prompt_response", "image": "image", **columns},
            },
            "held_out_fraction": 0.3,
        }
    )
    given = {f"images[{index}]": path for index, path in enumerate(sorted((root / "images").iterdir()))}
    (root / "out").mkdir()
    source = open_source(config.source, {"files[0]": root / "rows.jsonl", **given}, root / "scratch")
    return prepare(source, config, root / "out")
