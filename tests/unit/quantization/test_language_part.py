"""Of a vision-language model the language model is quantized, and the rest stays in 16 bits."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from effllm.models.checkpoint.widths import linear_in_features
from effllm.models.loading import load_causal_lm
from effllm.models.vision_language.parts import part_of
from effllm.quantization import read_precision
from effllm.quantization.by_loading import require_packed
from effllm.quantization.language_part import on_language_model
from effllm.quantization.weights import weight_bytes
from tests.unit.models.vision import FAMILIES, Family

WORDS = torch.arange(3, 23).view(2, 10)
LAYERS, WIDTH = 2, 64


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param) / "model", WIDTH, LAYERS)


def _is_vision(name: str, model: Any) -> bool:
    return part_of(model.config.model_type, name) is not None


def test_the_language_model_alone_says_the_same_and_is_put_back_where_it_was(family: Family, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def quantize(source: Path, target: Path) -> None:
        with torch.inference_mode():
            seen.append(AutoModelForCausalLM.from_pretrained(source)(WORDS).logits)
        shutil.copytree(source, target)

    on_language_model(family.directory, tmp_path / "out", quantize)
    with torch.inference_mode():
        expected = family.model(input_ids=WORDS).logits
        assert torch.allclose(seen[0], expected, atol=1e-4)
        # Nothing was packed, and so the whole is the model that it was.
        again = load_causal_lm(tmp_path / "out").eval()
        assert torch.equal(again(input_ids=WORDS).logits, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "bnb", "format": "nf4"},
        {"kind": "bnb", "format": "int8"},
        {"kind": "int8", "group_size": 32},
        {"kind": "fp8", "scales": "row", "activations": "none"},
    ],
    ids=lambda settings: settings.get("format", settings["kind"]),
)
def test_formats_of_loading_leave_tower_and_projector_as_they_are(
    family: Family, tmp_path: Path, settings: dict[str, Any]
) -> None:
    precision = read_precision(settings)
    precision.quantize(family.directory, tmp_path / "out", None, tmp_path)
    model = load_causal_lm(tmp_path / "out", **precision.load_options())
    # Of each layer four projections of attention and three of the feed-forward.
    sizes = weight_bytes(tmp_path / "out", precision)
    assert sizes.quantized_layers == 7 * LAYERS
    assert sizes.quantized_layers_bytes_16_bit == 2 * LAYERS * 7 * WIDTH**2
    assert sizes.quantized_layers_bytes is not None
    assert sizes.quantized_layers_bytes < sizes.quantized_layers_bytes_16_bit
    expected = family.model.to(torch.bfloat16)
    for name, weight in expected.named_parameters():
        if _is_vision(name, model):
            assert torch.equal(model.get_parameter(name), weight), name
    family.model.float()
    pixels = family.processing.batch([Image.new("RGB", (16, 16), (9, 99, 200))])
    assert precision.running_kernel(model)
    with torch.inference_mode():
        given = {key: value.to(torch.bfloat16) if key == "pixel_values" else value for key, value in pixels.items()}
        features = model.get_image_features(**given)
    assert features is not None


def test_gptq_packs_the_language_model_of_one_with_positions_in_two_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effllm.quantization import by_gptqmodel

    family = Family("qwen2_5_vl", tmp_path / "model", WIDTH)
    sequences = [{"input_ids": [*range(3 + seed, 35 + seed)], "attention_mask": [1] * 32} for seed in range(4)]
    monkeypatch.setattr(by_gptqmodel, "calibration_sequences", lambda *_: sequences)
    calibration = {"corpus": "none", "samples": 4, "sequence_length": 32}
    settings = {"bits": 8, "group_size": 32, "act_order": False, "damping": 0.1, "calibration": calibration}
    precision = read_precision({"kind": "gptq", **settings})
    (tmp_path / "records").mkdir()
    precision.quantize(family.directory, tmp_path / "out", tmp_path, tmp_path / "records")
    assert (tmp_path / "records" / "gptq.csv").is_file()
    assert weight_bytes(tmp_path / "out", precision).quantized_layers == 7
    model = load_causal_lm(tmp_path / "out").eval()
    assert precision.running_kernel(model)
    tensors = load_file(next((tmp_path / "out").glob("*.safetensors")))
    assert not any("qweight" in name for name in tensors if _is_vision(name, model))
    image = Image.new("RGB", (16, 16), (9, 99, 200))
    count = family.processing.tokens(16, 16)
    ids = torch.tensor([[*range(3, 9), *[family.processing.token_id] * count, *range(9, 19)]])
    given = family.processing.batch([image]) | family.processing.of_tokens(ids)
    with torch.inference_mode():
        expected = family.model(input_ids=ids, **given).logits
        got = model(input_ids=ids, **given | {"pixel_values": given["pixel_values"].to(model.dtype)}).logits.float()
    # Eight bits and bfloat16 against float32: near, and nearer than the answer to another image.
    blank = given | {"pixel_values": torch.zeros_like(given["pixel_values"])}
    with torch.inference_mode():
        other = family.model(input_ids=ids, **blank).logits
    assert (got - expected).norm() < 0.1 * expected.norm()
    assert (got - expected).norm() < (got - other).norm()
    # No plain linear layer is left in the decoder.
    require_packed(model, lambda _: False)


def test_widths_are_those_of_the_language_model() -> None:
    text = {"model_type": "qwen2_5_vl_text", "hidden_size": 64, "intermediate_size": 96}
    expected = {"attention projections": 64, "feed-forward output": 96}
    assert linear_in_features({"model_type": "qwen2_5_vl", "text_config": text, "hidden_size": 1}) == expected
    assert linear_in_features(text | {"model_type": "qwen2_vl"}) == expected
    assert linear_in_features({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}) == {}
