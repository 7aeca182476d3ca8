"""Directories that are no pipeline for images or videos: each is refused in one sentence before it is copied."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from effllm.errors import UserError
from effllm.models.generators.import_generator import build, local_files
from effllm.runtime.stage import run
from effllm.stages import STAGES

PARTS = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan", "text_encoder": "UMT5EncoderModel"}
MORE = {
    "transformer": {"patch_size": [1, 2, 2], "text_dim": 64},
    "vae": {"dim_mult": [1, 2], "temperal_downsample": [True]},
}
WEIGHTS = {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def tensors() -> bytes:
    header = json.dumps(WEIGHTS).encode()
    return struct.pack("<Q", len(header)) + header + bytes(24)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline of Wan, as far as the stage looks into it."""
    root = tmp_path / "pipeline"
    for part in (*PARTS, "tokenizer", "scheduler"):
        (root / part).mkdir(parents=True)
        (root / part / "config.json").write_text(json.dumps({"_class_name": PARTS.get(part), **MORE.get(part, {})}))
        if part in PARTS:
            (root / part / "model.safetensors").write_bytes(tensors())
    (root / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    return root


def imported(pipeline: Path, results: Path) -> dict[str, int]:
    """Parameters by part."""
    files = local_files(pipeline, "generators.x")
    config = {"kind": "local", "path": str(pipeline)}
    spec = {"stage": "generator", "version": STAGES["generator"].version, "config": config}
    output = results / "results" / "generator" / "x"
    return run(STAGES["generator"], build, spec=spec, inputs={"files": files}, output=output).json("generator.json")


def index_of(part: str, shard: str) -> Callable[[Path], None]:
    return lambda root: (root / part / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no pipeline": (lambda root: (root / "model_index.json").unlink(), "has no model_index.json; name the directory"),
    "another pipeline": (
        lambda root: (root / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'),
        "'FluxPipeline', which is not trained here: take a StableDiffusion3Pipeline or WanPipeline",
    ),
    "an index that is no JSON": (
        lambda root: (root / "model_index.json").write_text("{"),
        "model_index.json is not JSON",
    ),
    "a folder missing": (
        lambda root: shutil.rmtree(root / "tokenizer"),
        "lacks its folder tokenizer; take a whole one",
    ),
    "another transformer": (
        lambda root: (root / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}'),
        "transformer/config.json is that of a 'FluxTransformer2DModel' and not of a WanTransformer3DModel",
    ),
    "no weights": (
        lambda root: (root / "text_encoder" / "model.safetensors").rename(root / "text_encoder" / "model.bin"),
        r"text_encoder has no \*.safetensors; save the pipeline with save_pretrained",
    ),
    "half precision alone": (
        lambda root: (root / "vae" / "model.safetensors").rename(root / "vae" / "model.fp16.safetensors"),
        r"vae has no \*.safetensors",
    ),
    "a shard missing": (
        index_of("transformer", "b.safetensors"),
        "names 'b.safetensors', which is missing; add the file",
    ),
    "a shard elsewhere": (index_of("vae", "../b.safetensors"), r"which is no \*.safetensors of its own directory"),
    "weights cut short": (
        lambda root: (root / "vae" / "model.safetensors").write_bytes(tensors()[:-4]),
        "generators.x.*model.safetensors",
    ),
    "two transformers": (
        lambda root: (root / "model_index.json").write_text(
            json.dumps({"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]})
        ),
        "names a transformer_2, which is not trained here; take a pipeline of one transformer",
    ),
    "an encoder of another pipeline": (
        lambda root: (root / "text_encoder" / "config.json").write_text('{"d_model": 32}'),
        "transformer.text_dim is 64 and text_encoder.d_model 32; take all parts of one pipeline",
    ),
    "empty weights": (
        lambda root: (root / "vae" / "model.safetensors").write_bytes(b""),
        "generators.x.*model.safetensors",
    ),
}


def test_a_whole_pipeline_is_counted_by_part(pipeline: Path, tmp_path: Path) -> None:
    (pipeline / "vae" / "model.fp16.safetensors").write_bytes(tensors())
    assert imported(pipeline, tmp_path)["parameters"] == dict.fromkeys(PARTS, 6)


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_whole_pipeline_is_one_sentence(pipeline: Path, tmp_path: Path, damage: str) -> None:
    spoil, said = DAMAGED[damage]
    spoil(pipeline)
    with pytest.raises(UserError, match=said) as raised:
        imported(pipeline, tmp_path)
    assert "\n" not in str(raised.value)
