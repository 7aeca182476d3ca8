"""Artifacts of a stated size, of which nothing but manifests and summaries is there."""

import json
from pathlib import Path
from typing import Any

from effllm.results.model import ModelSummary
from tests.summaries import model_summary

GPTQ = {"group_size": 128, "act_order": False, "damping": 0.05}
CALIBRATION = {"corpus": "text", "samples": 8, "sequence_length": 64}


def manifest(directory: Path, stage: str, config: dict[str, Any], payload: dict[str, int]) -> str:
    """The path of a manifest that lists files of these sizes in bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    digests = {name: {"size": size, "sha256": ""} for name, size in payload.items()}
    identity = {"stage": stage, "id": directory.name, "status": "ok", "reason": None, "parents": {}}
    path = directory / "manifest.json"
    path.write_text(json.dumps(identity | {"spec": {"stage": stage, "config": config}, "payload": digests}))
    return str(path)


def checkpoint(gigabytes: float) -> dict[str, int]:
    """A payload of two shards of weights, and other files that do not count."""
    half = int(gigabytes * 5e8)
    return {"model/one.safetensors": half, "model/two.safetensors": half, "config.json": 9**9}


def variant(root: Path, gigabytes: float, bits: int = 16) -> str:
    """A model of stage `quantize`: cast, or packed into fewer bits."""
    packed = {"kind": "gptq", "bits": bits, "calibration": CALIBRATION, **GPTQ}
    precision = {"kind": "cast", "dtype": "bfloat16"} if bits == 16 else packed
    return manifest(root / f"{gigabytes}.{bits}", "quantize", {"precision": precision}, checkpoint(gigabytes))


def imported(root: Path, gigabytes: float, dtype: str) -> str:
    """A model of stage `model` whose weights have one type, of 2 or 4 bytes."""
    directory = root / f"{gigabytes}.{dtype}"
    path = manifest(directory, "model", {"kind": "local", "path": "x"}, checkpoint(gigabytes))
    size = int(gigabytes * 1e9)
    weights = {dtype: size // (4 if dtype == "float32" else 2)}
    (directory / ModelSummary.FILE).write_text(model_summary(weights, size))
    return path
