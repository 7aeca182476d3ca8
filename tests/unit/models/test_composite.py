"""A composite model, of text and images: every stage takes what it needs from the text decoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from effllm.errors import CellFailure
from effllm.evaluation.metered import MeteredLM
from effllm.models.loading import load_causal_lm, load_tokenizer
from effllm.models.text import context_length, is_composite, text_config
from effllm.profiling.decoding import TimedDecoding
from effllm.quantization.by_gptqmodel import check_group_size
from tests.unit.conftest import Builder
from tests.unit.models.foreign import ROWS, write_composite


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composite(tmp_path_factory.mktemp("composite") / "gemma3")


@pytest.fixture(scope="module")
def study(tiny_text: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The cut-down study with the composite model as its only one."""
    from tests.conftest import cut_down

    study = cut_down(tiny_text)
    study["models"] = {"gemma3": {"source": {"kind": "local", "path": str(directory)}}}
    study["finetuning"] = {}
    for table in study["tables"].values():
        table["models"] = ["gemma3"]
    return study


def test_the_terms_are_those_of_the_text_decoder(directory: Path) -> None:
    config = AutoConfig.from_pretrained(directory)
    assert not hasattr(config, "vocab_size")
    assert text_config(config).vocab_size == ROWS
    assert context_length(config) == 128
    assert is_composite(config)
    assert not is_composite(text_config(config))


def test_a_group_size_must_divide_the_text_decoder_only(directory: Path) -> None:
    """The vision tower is 24 wide, the text decoder 64."""
    config = AutoConfig.from_pretrained(directory)
    check_group_size(config, 32)
    with pytest.raises(CellFailure, match=r"group_size 128 does not divide the input width 64 of layers\.0"):
        check_group_size(config, 128)


def test_it_decodes_and_is_scored(directory: Path) -> None:
    model, tokenizer = load_causal_lm(directory).eval(), load_tokenizer(directory)
    prompt = torch.randint(ROWS, (2, 5))
    assert TimedDecoding(model, prompt, 3, "cpu").run().generated_tokens == 6
    harness = MeteredLM(model, tokenizer, batch_size=2, max_length=None)
    assert harness.max_length == 128
    harness.warm_up(generates=True)


@pytest.mark.parametrize("precision", [pytest.param("bfloat16", marks=pytest.mark.slow), "int4"])
def test_it_goes_through_every_stage(study: dict[str, Any], tmp_path: Path, precision: str) -> None:
    builder = Builder(json.loads(json.dumps(study)), tmp_path)
    quantized = builder.build("quantize", f"gemma3.{precision}")
    assert quantized.manifest.status == "ok", quantized.manifest.reason
    weights = quantized.json("quantization.json")["weights"]
    # Four projections of attention and three of the feed-forward in each of two text layers, none of the tower.
    assert weights["quantized_layers"] == (14 if precision == "int4" else 0)
    profile = builder.build("profile", f"gemma3.{precision}").json("profile.json")
    assert profile["workloads"]["single"]["status"] == "ok"
    why = profile["workloads"]["single"]["utilization"]["reasons"]["decode_mbu"]
    assert "model_type gemma3 has no cost formulas" in why
    assert builder.build("evaluate", f"gemma3.{precision}.perplexity").json("evaluation.json")["max_length"] == 128
