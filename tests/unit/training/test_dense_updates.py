"""LoHa, LoKr and GLoRA: their updates against their definitions, and ranks that match a number of parameters."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effllm.errors import UserError
from effllm.study import parse_study
from effllm.training.methods.lokr import divided
from tests.unit.training.small_models import small_model

LAYER = "model.layers.1.self_attn.k_proj"


def fill(model: nn.Module) -> None:
    """Trained parameters that are not zero."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def adapted_and_factors(prepared: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The layer with its update, and the update's tensors by name."""
    adapted = prepared.model.get_submodule(f"base_model.model.{LAYER}")
    named = adapted.named_parameters()
    return adapted, {n.replace(".default", ""): p.detach().double().numpy() for n, p in named if p.requires_grad}


def output_of(layer: nn.Module) -> Tensor:
    """The rows of a linear layer's weight, and its bias last."""
    with torch.no_grad():
        return layer(torch.cat([torch.eye(32), torch.zeros(1, 32)]))


def expected_output(weight: np.ndarray, bias: np.ndarray) -> Tensor:
    return torch.tensor(np.vstack([weight.T + bias, bias])).float()


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr, whole", "glora"])
def test_an_update_is_what_its_paper_defines(method: Callable[..., Any], kind: str) -> None:
    base = small_model("qwen2")
    layer = base.get_submodule(LAYER)
    layer.bias.data.normal_(generator=torch.Generator().manual_seed(4))
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    name, _, variant = kind.partition(", ")
    settings = method(name, rank=4, **{} if name != "lokr" else {"factor": 4 if variant else 2})
    prepared = settings.apply(base, "methods.m")
    fill(prepared.model)
    adapted, f = adapted_and_factors(prepared)
    assert sum(factor.size for factor in f.values()) == settings.parameters_at(4, 32, 16, has_bias=True)
    if name == "loha":
        weight = weight + 3 * (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])
    elif name == "lokr":
        large = f["lokr_w2"] if variant else f["lokr_w2_a"] @ f["lokr_w2_b"]
        assert f["lokr_w1"].shape == ((4, 4) if variant else (2, 2))
        blocks = f["lokr_w1"][:, None, :, None] * large[None, :, None, :]
        weight = weight + 3 * blocks.reshape(16, 32)
    else:
        a, b, c = (f[f"glora_{path}.Xd"] @ f[f"glora_{path}.Xu"] for path in "ABC")
        bias = bias + bias * f["glora_D.X"] + f["glora_E.X"] + weight @ c[:, 0]
        weight = weight + weight * a + b
    torch.testing.assert_close(output_of(adapted), expected_output(weight, bias), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("width", "factor", "expected"), [(4096, None, 64), (5120, None, 64), (12, 5, 3), (127, None, 1), (4096, 16, 16)]
)
def test_widths_are_divided_as_peft_divides_them(width: int, factor: int | None, expected: int) -> None:
    from peft.tuners.lokr.layer import factorization

    assert divided(width, factor) == factorization(width, factor or -1)[0] == expected


@pytest.mark.parametrize(
    ("family", "kind", "settings", "lora_rank", "rank"),
    [
        ("llama", "loha", {}, 8, 4),
        # Of two that are as near, the lower.
        ("llama", "loha", {}, 3, 1),
        ("llama", "glora", {}, 8, 4),
        # Biases have parameters too.
        ("qwen2", "glora", {}, 16, 7),
        ("llama", "lokr", {"factor": 2}, 4, None),
    ],
)
def test_a_rank_matches_the_parameters_of_another_method(
    method: Callable[..., Any], family: str, kind: str, settings: dict[str, Any], lora_rank: int, rank: int | None
) -> None:
    other = method("lora", rank=lora_rank)
    matching = method(kind, rank=None, match_parameters="lora", **settings).resolved("methods.m", {"lora": other})
    config = small_model(family).config
    counts = {}
    for name, settled in (("lora", other), ("matching", matching)):
        prepared = settled.apply(small_model(family), "methods.m")
        counts[name] = sum(p.numel() for p in prepared.model.parameters() if p.requires_grad)
        assert settled.trained_parameters(config) == counts[name]
    assert prepared.parameters_matched == counts["lora"]
    distance = abs(counts["matching"] - counts["lora"])
    for neighbour in (prepared.rank - 1, prepared.rank + 1):
        if neighbour:
            given = method(kind, rank=neighbour, **settings)
            assert abs(given.trained_parameters(config) - counts["lora"]) >= distance
    assert rank is None or prepared.rank == rank


def test_parameters_that_no_rank_matches_are_refused(method: Callable[..., Any]) -> None:
    lora = method("lora", rank=16)
    matching = method("lokr", rank=None, match_parameters="lora").resolved("methods.m", {"lora": lora})
    with pytest.raises(UserError, match=r"methods\.m\.match_parameters: rank 4 comes nearest .* give a rank"):
        matching.apply(small_model("llama"), "methods.m")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"match_parameters": "lora", "rank": 4}, ["both are given"]),
        ({}, ["neither is given"]),
        ({"match_parameters": "lorra"}, ["methods.loha.match_parameters", "'lorra' does not exist", "'lora'"]),
        ({"match_parameters": "dora"}, ["methods.loha.match_parameters: 'dora'", "kind lora"]),
        ({"match_parameters": "full"}, ["methods.loha.match_parameters: 'full'", "kind lora"]),
        ({"match_parameters": ["lora"]}, ["methods.loha.match_parameters", "no method", "write the id"]),
        ({"match_parameters": {"rank": 0}}, ["methods.loha.match_parameters.rank:", "greater than 0"]),
        ({"match_parameters": {"rank": 4, "target": ["q"]}}, ["methods.loha.match_parameters.target: unknown key"]),
        ({"rank": 4000}, ["methods.loha.rank 4000", "lower it"]),
        ({"kind": "lokr", "match_parameters": "lora"}, ["methods.loha.match_parameters, on llama-1m", "comes nearest"]),
    ],
)
def test_bad_input_is_named_with_its_remedy(tiny: dict[str, Any], changes: dict[str, Any], parts: list[str]) -> None:
    tiny["methods"]["loha"] = {"kind": "loha"} | changes
    tiny["finetuning"]["describe"]["methods"] = ["lora", "dora", "full", "loha"]
    tiny["finetuning"]["describe"].pop("parallel_by_method")
    with pytest.raises(UserError) as caught:
        parse_study(tiny, "study.yaml")
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def kept_bytes(model: nn.Module, tokens: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters apart."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tokens, labels=tokens, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("kind", ["loha", "lokr", "glora"])
def test_what_is_formed_is_kept_for_the_backward_pass(method: Callable[..., Any], kind: str) -> None:
    tokens = torch.arange(1, 5)[None]
    config = small_model("llama").config
    kept = {}
    for name in (kind, "lora"):
        settings = method(name, rank=1)
        kept[name] = kept_bytes(settings.apply(small_model("llama"), "methods.m").model, tokens)
    # The first layer's queries, keys and values pass no gradient on, so that theirs are not needed.
    unneeded = 32 * 32 + 2 * 32 * 16
    formed = method(kind).formed_weights(config) - unneeded
    assert kept[kind] - kept["lora"] == pytest.approx(4 * formed, rel=0.1)
