"""Layers named by a pattern of whole names, in models of any library."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from effllm.errors import UserError
from effllm.training.adapters import merge_adapter, save_adapter

LANGUAGE = r".*language_model\..*(q|v)_proj"
ATTENTION = r"transformer_blocks\..*\.attn\.(to_q|to_out\.0)"


def seeing_model() -> LlavaForConditionalGeneration:
    """A model whose vision tower has layers of the same names as its language model."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = CLIPVisionConfig(**shape, image_size=16, patch_size=8, projection_dim=16)
    text = LlamaConfig(**shape, vocab_size=97, pad_token_id=0, initializer_range=0.2)
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_id=96, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_out": nn.ModuleList([nn.Linear(8, 8), nn.Dropout(0)])})
        self.ff = nn.ModuleDict({"to_out": nn.ModuleList([nn.Linear(8, 8)])})

    def forward(self, x: Tensor) -> Tensor:
        return self.ff["to_out"][0](self.attn["to_out"][0](self.attn["to_q"](x).tanh()))


class Painter(nn.Module):
    """A transformer of no library of language models: its configuration is a dict, no head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = {"num_layers": 2}
        self.transformer_blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.transformer_blocks:
            x = x + block(x)
        return x


def perturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1


@pytest.mark.parametrize(
    ("make", "pattern", "inputs", "count"),
    [
        (seeing_model, LANGUAGE, {"input_ids": torch.tensor([[1, 2, 3]])}, 4),
        (Painter, ATTENTION, {"x": torch.ones(1, 3, 8)}, 4),
    ],
    ids=["vision-language", "painter"],
)
def test_a_pattern_adapts_the_layers_of_these_whole_names(
    method: Callable[..., Any], tmp_path: Path, make: Callable[[], Any], pattern: str, inputs: Any, count: int
) -> None:
    def output(model: nn.Module) -> Tensor:
        with torch.no_grad():
            made = model(**inputs)
        return made if isinstance(made, Tensor) else made.logits

    settings = method("lora", target_modules=pattern)
    base = make()
    start = output(base)
    wanted = {n for n, m in base.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(pattern, n)}
    assert len(wanted) == count
    model = settings.apply(base, "methods.m").model
    products = settings.added_products(model)
    assert set(products) == wanted
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(products.values()) == trained, "each weight of A and B is multiplied once for a row"
    assert torch.equal(output(model), start)
    perturb(model)
    expected = output(model)
    assert not torch.allclose(expected, start)
    save_adapter(model, tmp_path, "models/base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == pattern
    torch.testing.assert_close(output(PeftModel.from_pretrained(make(), str(tmp_path)).eval()), expected)
    torch.testing.assert_close(output(merge_adapter(make(), tmp_path)), expected, rtol=1e-4, atol=1e-5)


def test_a_pattern_that_matches_other_modules_adapts_the_linear_ones(method: Callable[..., Any]) -> None:
    settings = method("lora", rank=2, target_modules=r"transformer_blocks\.0\..*")
    model = settings.apply(Painter(), "methods.m").model
    assert set(settings.added_products(model)) == {
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.ff.to_out.0",
    }


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("q_proj", ["single name", "[q_proj]"]),
        ("(q|v", ["no regular expression", "correct it"]),
        ([], ["no choice of layers", "all-linear"]),
    ],
)
def test_a_choice_of_layers_that_is_none_is_refused(method: Callable[..., Any], value: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="target_modules") as caught:
        method("lora", target_modules=value)
    assert all(part in str(caught.value) for part in parts)


def test_a_pattern_without_a_match_is_refused(method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"methods\.m\.target_modules: 'blocks.*' matches no .* \(Painter\).*to_q"):
        method("lora", target_modules=r"blocks\..*").apply(Painter(), "methods.m")
