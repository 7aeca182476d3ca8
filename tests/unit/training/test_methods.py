"""Each fine-tuning method does what its paper defines, on every family, and says where it does not fit."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import PreTrainedModel

from effllm.errors import UserError
from effllm.models.loading import load_causal_lm
from effllm.models.saving import save_causal_lm
from effllm.training import methods
from effllm.training.adapters import adapter_bytes, merge_adapter, save_adapter, write_start
from effllm.training.finetune import has_balancing_loss
from effllm.training.methods import AnyMethod
from effllm.training.methods.freeze import decoder_layers
from effllm.training.methods.method import PreparedModel
from tests.unit.training.small_models import small_model

FAMILIES = ("llama", "qwen2", "phi3", "gpt_neox", "rwkv", "effllm-gqa", "effllm-mla", "effllm-learned", "effllm-moe")
LOW_RANK = ("lora", "lora_plus", "rslora", "dora", "pissa")
DENSE = ("loha", "lokr", "glora")
LAYER = "model.layers.1.self_attn.k_proj"
"""In Llama: maps 32 to 16."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(2)


def trainable_parameters(model: nn.Module) -> int:
    """Numbers that are trained; a tensor shared by several modules counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=tokens).logits


def _save(prepared: PreparedModel, directory: Path) -> None:
    start = directory.parent / f"{directory.name}-start" if prepared.initial_adapter else None
    if start:
        write_start(prepared.initial_adapter, start)
    save_adapter(prepared.model, directory, "models/base", start=start)


def _assert_same(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest logit."""
    torch.testing.assert_close(actual, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def _train(prepared: PreparedModel, tokens: Tensor, steps: int = 3, rate: float = 0.01) -> None:
    """A bare loop, so that the methods are tested apart from the Trainer."""
    optimizer = torch.optim.AdamW(prepared.parameter_groups(prepared.model, rate, weight_decay=0.0))
    prepared.model.train()
    for _ in range(steps):
        prepared.model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _factors(prepared: PreparedModel, layer: str = LAYER) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] of one layer."""
    adapted = prepared.model.get_submodule(f"base_model.model.{layer}")
    return adapted.lora_A["default"].weight.detach(), adapted.lora_B["default"].weight.detach()


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("kind", "scale"), [("lora", 12 / 4), ("lora_plus", 12 / 4), ("rslora", 12 / math.sqrt(4))])
def test_the_update_is_scaled_as_the_method_says(
    method: Callable[..., Any], tokens: Tensor, kind: str, scale: float
) -> None:
    base = small_model("llama")
    prepared = method(kind, target_modules=["k_proj"]).apply(base, "methods.m")
    _train(prepared, tokens)
    reference = small_model("llama")
    for index in range(3):
        layer = f"model.layers.{index}.self_attn.k_proj"
        down, up = _factors(prepared, layer)
        assert up.abs().max() > 0
        reference.get_submodule(layer).weight.data += scale * up @ down
    _assert_same(_logits(prepared.model, tokens), _logits(reference, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_layer_but_the_head(method: Callable[..., Any], family: str) -> None:
    base = small_model(family)
    head = base.get_output_embeddings()
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear) and module is not head}
    prepared = method("lora").apply(base, "methods.m")
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in prepared.model.named_modules()
        if hasattr(module, "lora_A") and module.lora_A
    }
    assert adapted == linear
    assert all(".lora_" in name for name, p in prepared.model.named_parameters() if p.requires_grad)


def test_a_target_with_a_dot_leaves_its_namesakes_alone(method: Callable[..., Any]) -> None:
    prepared = method("lora", target_modules=["1.self_attn.k_proj"]).apply(small_model("llama"), "methods.m")
    assert {name for name, p in prepared.model.named_parameters() if p.requires_grad} == {
        f"base_model.model.{LAYER}.lora_A.default.weight",
        f"base_model.model.{LAYER}.lora_B.default.weight",
    }


def test_dora_trains_magnitudes_and_directions(method: Callable[..., Any], tokens: Tensor) -> None:
    """W' = m (W + s B A) / ||W + s B A||, norms over the input, m starting at the norms of W (eq. 5)."""
    base = small_model("llama")
    weight = base.get_submodule(LAYER).weight.detach().clone()
    prepared = method("dora", target_modules=["k_proj"]).apply(base, "methods.m")
    magnitude = prepared.model.get_submodule(f"base_model.model.{LAYER}").lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude.detach(), weight.norm(dim=1))
    _train(prepared, tokens)
    assert (magnitude - weight.norm(dim=1)).abs().min() > 0
    reference = small_model("llama")
    for index in range(3):
        layer = f"model.layers.{index}.self_attn.k_proj"
        down, up = _factors(prepared, layer)
        trained = prepared.model.get_submodule(f"base_model.model.{layer}").lora_magnitude_vector["default"].weight
        direction = reference.get_submodule(layer).weight.data + 3 * up @ down
        direction /= direction.norm(dim=1, keepdim=True)
        torch.testing.assert_close(direction.norm(dim=1), torch.ones(16))
        reference.get_submodule(layer).weight.data = trained.detach()[:, None] * direction
    _assert_same(_logits(prepared.model, tokens), _logits(reference, tokens))


def test_pissa_moves_the_principal_singular_part_into_the_adapter(method: Callable[..., Any]) -> None:
    base = small_model("llama")
    weight = base.get_submodule(LAYER).weight.detach().numpy().astype(np.float64)
    prepared = method("pissa").apply(base, "methods.m")
    down, up = (factor.numpy().astype(np.float64) for factor in _factors(prepared))
    left, singular, right = np.linalg.svd(weight, full_matrices=False)
    np.testing.assert_allclose(3 * up @ down, (left[:, :4] * singular[:4]) @ right[:4], atol=1e-5)
    residual = prepared.model.get_submodule(f"base_model.model.{LAYER}").base_layer.weight.detach().numpy()
    np.testing.assert_allclose(residual, (left[:, 4:] * singular[4:]) @ right[4:], atol=1e-5)
    # Each factor has the square root of the singular values, the scale divided out (eq. 2, 3).
    np.testing.assert_allclose(np.linalg.norm(up, axis=0), np.sqrt(singular[:4] / 3), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(down, axis=1), np.sqrt(singular[:4] / 3), atol=1e-5)


def test_lora_plus_has_two_learning_rates_in_the_stated_ratio(method: Callable[..., Any]) -> None:
    prepared = method("lora_plus", learning_rate_ratio=8).apply(small_model("llama"), "methods.m")
    groups = prepared.parameter_groups(prepared.model, 1e-3, weight_decay=0.1)
    reference = create_loraplus_optimizer(
        prepared.model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8, loraplus_weight_decay=0.1
    )

    def described(groups: list[dict[str, Any]]) -> set[Any]:
        return {(g["lr"], g["weight_decay"], frozenset(map(id, g["params"]))) for g in groups if g["params"]}

    assert described(groups) == described(reference.param_groups)
    assert sorted(group["lr"] for group in groups) == [1e-3, 8e-3]


@pytest.mark.parametrize("kind", ["lora", "dora", "full", "freeze"])
def test_groups_hold_each_trained_parameter_once_and_vectors_do_not_decay(
    method: Callable[..., Any], kind: str
) -> None:
    settings = {"frozen_layers": 1} if kind == "freeze" else {}
    prepared = method(kind, **settings).apply(small_model("qwen2"), "methods.m")
    groups = prepared.parameter_groups(prepared.model, 1e-3, weight_decay=0.1)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(p) for p in prepared.model.parameters() if p.requires_grad)
    assert {group["lr"] for group in groups} == {1e-3}
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.1}


@pytest.mark.parametrize("family", FAMILIES)
def test_freeze_leaves_embeddings_and_first_layers_bit_identical(
    method: Callable[..., Any], tokens: Tensor, family: str
) -> None:
    base = small_model(family)
    layers = decoder_layers(base)
    assert layers is not None
    fixed = {id(p) for layer in layers[:2] for p in layer.parameters()}
    fixed |= {id(p) for m in base.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    before = _values(base)
    _train(method("freeze", frozen_layers=2).apply(base, "methods.m"), tokens)
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) in fixed), name


@pytest.mark.parametrize("family", FAMILIES)
def test_full_changes_every_parameter(method: Callable[..., Any], tokens: Tensor, family: str) -> None:
    base = small_model(family)
    before = _values(base)
    prepared = method("full").apply(base, "methods.m")
    assert trainable_parameters(prepared.model) == base.num_parameters()
    _train(prepared, tokens)
    assert [name for name, parameter in base.named_parameters() if torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [*LOW_RANK, *DENSE])
def test_an_adapter_starts_at_the_base_model_reloads_and_merges(
    method: Callable[..., Any], tokens: Tensor, tmp_path: Path, family: str, kind: str
) -> None:
    base = small_model(family)
    names, start = set(_values(base)), _logits(base, tokens)
    # LoKr's larger matrix is then one of low rank in some layers and a whole one in others.
    prepared = method(kind, **{"factor": 4} if kind == "lokr" else {}).apply(base, "methods.m")
    _assert_same(_logits(prepared.model, tokens), start)
    _train(prepared, tokens)
    expected = _logits(prepared.model, tokens)
    assert (expected - start).abs().max() > 1e-2
    _save(prepared, tmp_path)
    # Saving must not disturb the model in memory.
    assert torch.equal(_logits(prepared.model, tokens), expected)
    reloaded = PeftModel.from_pretrained(small_model(family), str(tmp_path))
    _assert_same(_logits(reloaded, tokens), expected)
    merged = merge_adapter(small_model(family), tmp_path)
    _assert_same(_logits(merged, tokens), expected)
    assert set(_values(merged)) == names


RELOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
tokens = torch.tensor(json.loads(sys.argv[2]))
for adapter in sys.argv[3:]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), adapter).eval()
    with torch.no_grad():
        torch.save(model(input_ids=tokens).logits, adapter + "/logits.pt")
"""


def test_adapters_reload_with_plain_peft_in_a_fresh_process(
    method: Callable[..., Any], tokens: Tensor, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    small_model("qwen2").save_pretrained(base)
    expected = {}
    for kind in (*LOW_RANK, *DENSE):
        prepared = method(kind, **{} if kind == "glora" else {"dropout": 0.1}).apply(small_model("qwen2"), "methods.m")
        _train(prepared, tokens)
        expected[kind] = _logits(prepared.model, tokens)
        _save(prepared, tmp_path / kind)
    adapters = [str(tmp_path / kind) for kind in expected]
    # Outside of the checkout, so that nothing of this package can help.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", RELOAD, str(base), json.dumps(tokens.tolist()), *adapters],
        check=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
    )
    for kind in expected:
        logits = torch.load(tmp_path / kind / "logits.pt", weights_only=True)
        _assert_same(logits, expected[kind])


def test_an_adapters_files_are_the_same_for_the_same_tensors(
    method: Callable[..., Any], tokens: Tensor, tmp_path: Path
) -> None:
    prepared = method("pissa").apply(small_model("llama"), "methods.m")
    _train(prepared, tokens)
    for name in ("one", "two"):
        _save(prepared, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/base"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"]) == (8, 24), "what PiSSA took out of the base is in the adapter"
    assert adapter_bytes(tmp_path / "one") > 2 * 4 * trainable_parameters(prepared.model)


def test_merging_into_16_bits_rounds_once(method: Callable[..., Any], tokens: Tensor, tmp_path: Path) -> None:
    base = small_model("llama").to(torch.bfloat16)
    prepared = method("lora", target_modules=["k_proj"]).apply(base, "methods.m")
    assert {p.dtype for p in prepared.model.parameters() if p.requires_grad} == {torch.float32}
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    _save(prepared, tmp_path)
    down, up = _factors(prepared)
    original = small_model("llama").to(torch.bfloat16).get_submodule(LAYER).weight
    merged = merge_adapter(small_model("llama").to(torch.bfloat16), tmp_path).get_submodule(LAYER).weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (original.float() + 3 * up @ down).to(torch.bfloat16))


def test_cached_decoding_uses_the_adapter(method: Callable[..., Any], tokens: Tensor, tmp_path: Path) -> None:
    """MLA absorbs a projection into the query when it decodes, which an adapter on it must prevent."""
    prepared = method("lora").apply(small_model("effllm-mla"), "methods.m")
    _train(prepared, tokens)
    _save(prepared, tmp_path)
    merged = merge_adapter(small_model("effllm-mla"), tmp_path)

    def decoded(model: PreTrainedModel) -> Tensor:
        model.eval()
        with torch.no_grad():
            past = model(input_ids=tokens[:, :-1], use_cache=True).past_key_values
            return model(input_ids=tokens[:, -1:], past_key_values=past, use_cache=True).logits

    _assert_same(decoded(prepared.model), decoded(merged))


def test_adapters_come_without_gptqmodel(method: Callable[..., Any]) -> None:
    """peft would import it, and with it options of the allocator and a hundred megabytes."""
    loaded = sys.modules.pop("gptqmodel", None)
    before = dict(os.environ)
    try:
        method("lora").apply(small_model("llama"), "methods.m")
        assert "gptqmodel" not in sys.modules
        assert dict(os.environ) == before
    finally:
        if loaded is not None:
            sys.modules["gptqmodel"] = loaded


MISFITS = {
    "rank": ("llama", "lora", {"rank": 17}, ["methods.m.rank", "17", "k_proj", "32 to 16", "lower it"]),
    "no match": (
        "phi3",
        "lora",
        {"target_modules": ["o_proj", "q_proj"]},
        ["methods.m.target_modules", "'q_proj'", "phi3", "qkv_proj", "all-linear"],
    ),
    "layers": ("llama", "freeze", {"frozen_layers": 3}, ["methods.m.frozen_layers", "3", "3 layers", "fix fewer"]),
    "mamba": ("mamba", "lora", {"rank": 2}, ["methods.m", "mamba", "out_proj"]),
    "mamba, dense": ("mamba", "loha", {"rank": 2}, ["methods.m", "mamba", "out_proj"]),
    "rank, dense": ("llama", "glora", {"rank": 17}, ["methods.m.rank", "17", "k_proj", "32 to 16", "lower it"]),
    "mamba2": ("mamba2", "lora", {"rank": 2}, ["methods.m", "mamba2", "out_proj"]),
    "tied head": ("qwen2", "lora", {"target_modules": ["lm_head"]}, ["methods.m.target_modules", "head", "leave it"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_method_that_does_not_fit_the_model_is_refused_in_a_sentence(method: Callable[..., Any], name: str) -> None:
    family, kind, settings, parts = MISFITS[name]
    with pytest.raises(UserError) as caught:
        method(kind, **settings).apply(small_model(family), "methods.m")
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_every_kind_of_method_is_registered() -> None:
    schema = TypeAdapter(AnyMethod).json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(methods.METHODS)


@pytest.mark.parametrize(("family", "expected"), [("effllm-moe", True), ("effllm-gqa", False), ("effllm-mla", False)])
def test_an_exported_mixture_is_trained_with_its_balancing_loss(
    tokens: Tensor, family: str, expected: bool, tmp_path: Path
) -> None:
    ours = small_model(family)
    save_causal_lm(ours, tmp_path)
    exported = load_causal_lm(tmp_path)
    assert has_balancing_loss(exported) is expected
    if expected:
        asked = exported(tokens, labels=tokens, output_router_logits=True).loss
        torch.testing.assert_close(asked, ours(tokens, labels=tokens).loss)
        assert exported(tokens, labels=tokens).loss < asked
