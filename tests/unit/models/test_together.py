"""A model that several processes have parts of, on two of a processor (gloo)."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import effllm.models.decoder.model  # noqa: F401
from effllm.errors import CellFailure, UserError
from effllm.models.greedy import greedy_config
from effllm.models.together import end_with, loaded_together, require_divisible
from effllm.profiling.decoding import TimedDecoding
from effllm.quantization.loading import quantized_on
from effllm.results.quantization import Quantization, WeightBytes
from effllm.stages import STAGES
from effllm.study import load_study, parse_study
from tests.conftest import REPOSITORY

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
}


def _saved(directory: Path, family: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SHAPE | keys)), dtype=torch.float32)
    model.save_pretrained(directory)
    return model.eval()


def test_two_processes_generate_the_tokens_of_one(tmp_path: Path) -> None:
    whole = _saved(tmp_path / "model", "qwen2", num_key_value_heads=2, tie_word_embeddings=False)
    before = dict(os.environ)
    prompts = [torch.randint(3, 64, (batch, 9)) for batch in (2, 1)]
    with loaded_together(tmp_path / "model", ["cpu", "cpu"]) as model:
        parts = sum(getattr(weight, "to_local", lambda w=weight: w)().numel() for weight in model.parameters())
        assert 0.5 <= parts / whole.num_parameters() < 0.55
        # No library is to take the process for one of several that share out work.
        assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
        for prompt in prompts:
            options: dict[str, Any] = {"attention_mask": torch.ones_like(prompt)}
            options["generation_config"] = greedy_config(2, 0, min_new_tokens=12, max_new_tokens=12)
            with torch.inference_mode():
                ours, expected = (of.generate(prompt, **options) for of in (model, whole))
            assert torch.equal(ours, expected)
        times = TimedDecoding(model, prompts[0], 5, "cpu").run()
        assert times.generated_tokens == 10 and len(times.token_s) == 4
    assert dict(os.environ) == before


def test_a_process_that_ends_early_ends_the_one_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done, codes = threading.Event(), list[int]()

    def end(code: int) -> None:
        codes.append(code)
        done.set()

    monkeypatch.setattr(os, "_exit", end)
    with subprocess.Popen(["false"]) as ended, subprocess.Popen(["sleep", "60"]) as runs:
        end_with([runs, ended], done, grace_s=0)
        assert codes == [1]
        # Once all is done it is meant to end.
        end_with([runs, ended], done, grace_s=0)
        runs.kill()
    assert codes == [1]


def test_packed_layers_are_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    @contextmanager
    def loading(checkpoint: Path, devices: Sequence[str]) -> Iterator[str]:
        loaded.append((checkpoint, devices))
        yield "model"

    monkeypatch.setattr("effllm.models.together.loaded_together", loading)
    monkeypatch.setattr("effllm.quantization.loading.load_quantized", lambda *where: ("by layers", where))
    for settings in ({"kind": "cast", "dtype": "bfloat16"}, {"kind": "bnb", "format": "nf4"}):
        parts = {"quantized_layers_bytes": None, "quantized_layers_bytes_16_bit": None}
        weights = WeightBytes(bytes=1, quantized_layers=0, **parts)
        record = Quantization(nominal_bits=16, precision=settings, weights=weights)
        (tmp_path / Quantization.FILE).write_text(record.to_json())
        artifact = cast(Any, SimpleNamespace(directory=tmp_path))
        for devices, spread in ((["cuda:0"], "tensor"), (["cuda:0", "cuda:1"], "layers")):
            with quantized_on(artifact, devices, cast(Any, spread)) as (model, _):
                assert str(model) == "by layers"
        if settings["kind"] == "cast":
            with quantized_on(artifact, ["cuda:0", "cuda:1"], "tensor") as (model, precision):
                assert (str(model), precision.nominal_bits) == ("model", 16)
        else:
            with pytest.raises(CellFailure, match="these are packed"):
                quantized_on(artifact, ["cuda:0", "cuda:1"], "tensor").__enter__()
    assert loaded == [(tmp_path / "model", ["cuda:0", "cuda:1"])]


def test_only_a_profile_by_tensors_says_so_in_its_spec() -> None:
    plain = load_study(REPOSITORY / "config" / "precisions.yaml").plain()
    id = next(iter(plain["models"]))
    plain["models"][id] |= {"devices": 2, "spread": "layers"}
    by_layers = STAGES["profile"].config(parse_study(plain, "test"), f"{id}.bfloat16")
    plain["models"][id] |= {"spread": "tensor"}
    by_tensors = STAGES["profile"].config(parse_study(plain, "test"), f"{id}.bfloat16")
    assert isinstance(by_layers, dict) and "spread" not in by_layers
    assert by_tensors == by_layers | {"spread": "tensor"}
    plain["models"][id] |= {"devices": None}
    with pytest.raises(UserError, match=rf"models\.{re.escape(id)}.*say of how many as devices"):
        parse_study(plain, "test")


@pytest.mark.parametrize(
    ("family", "keys", "reason"),
    [
        (
            "qwen2",
            {"num_attention_heads": 4, "num_key_value_heads": 1},
            "2 devices do not divide the model's 1 num_key",
        ),
        (
            "llama",
            {"num_attention_heads": 1, "num_key_value_heads": 1},
            "do not divide the model's 1 num_attention_heads",
        ),
        ("effllm", {"attention": "gqa"}, "no plan to cut the layers of model_type 'effllm'"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_it_is_loaded(
    family: str, keys: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(family, **(SHAPE | keys)).save_pretrained(tmp_path)
    with pytest.raises(CellFailure, match=reason) as refused:
        require_divisible(tmp_path, 2)
    assert refused.value.status == "unsupported"
