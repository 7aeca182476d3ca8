"""How many GPUs a model gets, what refuses it, and how its layers are spread."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

from effllm.errors import CellFailure, UserError
from effllm.models.placement import Need, choose, keep_hooks_at_parts, need_of, place, require_on_devices

GB = 1e9
# Qwen2.5-72B.
QWEN_72B: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "sliding_window": 131_072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}


def _written(directory: Path, content: object) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def test_gpus_follow_from_weights_caches_and_workspace() -> None:
    need = Need(weights_b=145 * GB, caches_b=5 * GB, workspace_b=2 * GB)
    # 150 / (0.9 * 80 - 2) = 2.14.
    assert need.gpus(80 * GB) == 3
    assert need.gpus(141 * GB) == 2
    # 150 / (0.9 * 171 - 2) = 0.987.
    assert need.gpus(171 * GB) == 1
    assert Need(1.0, workspace_b=73 * GB).gpus(80 * GB) is None


def test_the_cache_of_the_largest_batch_counts_and_the_longest_prompt_makes_the_workspace(tmp_path: Path) -> None:
    need = need_of(145 * GB, _written(tmp_path, QWEN_72B), [(1, 32_768, 32_896), (64, 256, 640)])
    # Two vectors of 8 heads of 128 for each of 80 layers, in 2 bytes.
    assert need.caches_b == 64 * 640 * 2 * 8 * 128 * 80 * 2
    at_once = 6 * 8192 + 3 * 8192 + 2 * 1024 + 4 * 29_568
    assert need.workspace_b == 32_768 * at_once * 2 + 152_064 * 6
    scored = need_of(145 * GB, tmp_path, [(1, 4096, 4096)], scores=True)
    assert scored.workspace_b == 4096 * (2 * at_once + 6 * 152_064)


@pytest.mark.parametrize("content", [{}, {"model_type": "unheard_of"}, [], {"model_type": "qwen2"}])
def test_what_has_no_formulas_needs_its_weights_and_a_tenth_more(tmp_path: Path, content: object) -> None:
    assert need_of(100.0, _written(tmp_path, content), [(1, 10, 20)]) == Need(100.0, workspace_b=10.0)


def test_what_does_not_fit_is_refused_with_the_numbers_before_it_is_loaded() -> None:
    need = Need(145 * GB, 5 * GB, 2 * GB)
    assert choose(need, there=4, memory_b=80 * GB) == 3
    with pytest.raises(CellFailure) as refused:
        choose(need, there=1, memory_b=80 * GB)
    assert refused.value.status == "oom"
    assert refused.value.reason == (
        "weights of 145.0 GB and caches of 5.0 GB, with a workspace of 2.0 GB on each GPU, do not fit 1 of 80.0 GB; "
        "3 of them do"
    )
    # The margin is no proof: it is tried.
    assert choose(Need(79 * GB), there=1, memory_b=80 * GB) == 1
    with pytest.raises(CellFailure, match="no number of them does"):
        choose(Need(GB, workspace_b=90 * GB), there=8, memory_b=80 * GB)


def test_a_study_that_asks_for_more_gpus_than_a_job_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place(Need(GB), asked=2) == ["cpu"] or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = type("Properties", (), {"total_memory": int(80 * GB)})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    assert place(Need(10 * GB), asked=None) == ["cuda:0"]
    assert place(Need(10 * GB), asked=2) == place(Need(100 * GB), asked=None) == ["cuda:0", "cuda:1"]
    with pytest.raises(UserError, match="asks for 3 GPUs and this job has 2"):
        place(Need(10 * GB), asked=3)


def test_layers_go_whole_and_evenly_to_two_devices() -> None:
    config = AutoConfig.for_model(**QWEN_72B)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # As `from_pretrained` places them under device_map "balanced".
    memory = get_balanced_memory(model, {0: int(80e9), 1: int(80e9)}, model._no_split_modules)
    places = infer_auto_device_map(model, memory, model._no_split_modules)
    assert set(places.values()) == {0, 1}
    layers = [places[f"model.layers.{number}"] for number in range(80)]
    assert layers == sorted(layers)
    shares = [0, 0]
    for name, weight in model.named_parameters():
        place = next(of for part, of in places.items() if name == part or name.startswith(f"{part}."))
        shares[place] += weight.nbytes
    assert min(shares) / max(shares) > 0.9 and max(shares) < 80e9


def test_a_spread_model_answers_alike_with_hooks_at_its_parts_alone() -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    config = AutoConfig.for_model(**QWEN_72B | small | {"num_attention_heads": 4, "num_key_value_heads": 2})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    prompt = torch.randint(64, (2, 9))
    answer = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    plain = model.generate(prompt, attention_mask=torch.ones_like(prompt), **answer)
    parts = ["model.embed_tokens", *(f"model.layers.{number}" for number in range(3)), "model.norm", "model.rotary_emb"]
    spread = dispatch_model(model, dict.fromkeys([*parts, "lm_head"], "cpu"), main_device="cpu", force_hooks=True)
    hooked = {name for name, module in spread.named_modules() if hasattr(module, "_hf_hook")}
    assert "model.layers.0.mlp.up_proj" in hooked
    keep_hooks_at_parts(spread)
    hooked = {name for name, module in spread.named_modules() if hasattr(module, "_hf_hook")}
    assert {"model.layers.0", "model.layers.2", "lm_head"} <= hooked
    assert not any(name.startswith("model.layers.0.") for name in hooked)
    assert torch.equal(spread.generate(prompt, attention_mask=torch.ones_like(prompt), **answer), plain)


def test_layers_that_were_left_on_the_host_are_no_model_on_gpus() -> None:
    model = type("Spread", (), {"hf_device_map": {"model.layers.0": 0, "model.layers.1": "disk"}})
    with pytest.raises(CellFailure, match=r"model\.layers\.1 and what follows do not fit 2 GPUs"):
        require_on_devices(model, ["cuda:0", "cuda:1"])
    require_on_devices(model, ["cpu"])
