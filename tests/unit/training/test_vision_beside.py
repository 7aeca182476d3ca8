"""Tower and projector trained beside every kind of adapter: counted, saved, loaded again and merged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file

from effllm.models.loading import load_causal_lm
from effllm.models.vision_language.parts import part_of
from effllm.training.adapters import beside_adapter, load_adapter, merge_adapter, save_adapter, write_start
from effllm.training.finetune import _sizes
from effllm.training.images import train_vision_beside
from effllm.training.methods import AnyMethod
from effllm.training.suites import Vision
from tests.unit.models.vision import FAMILIES, Family

LOW_RANK = {"rank": 4, "alpha": 8}
METHODS: dict[str, dict[str, Any]] = {
    "lora": LOW_RANK,
    "lora_plus": LOW_RANK | {"learning_rate_ratio": 4},
    "rslora": LOW_RANK,
    "dora": LOW_RANK,
    "pissa": LOW_RANK,
    "loha": LOW_RANK,
    "lokr": LOW_RANK | {"factor": 4},
    "glora": {"rank": 4},
}
PROJECTOR, BOTH = Vision(projector="trained"), Vision(tower="trained", projector="trained")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family("llava", tmp_path_factory.mktemp("llava"))


def _batch(family: Family) -> dict[str, torch.Tensor]:
    processing = family.processing
    ids = torch.tensor([[*[processing.token_id] * processing.tokens(16, 16), *range(9, 25)]])
    return {"input_ids": ids, **processing.batch([Image.effect_noise((16, 16), 90).convert("RGB")])} | (
        processing.of_tokens(ids)
    )


def _check(family: Family, kind: str, vision: Vision, directory: Path) -> None:
    method = TypeAdapter(AnyMethod).validate_python({"kind": kind, **METHODS[kind]})
    base = copy.deepcopy(family.model)
    batch = _batch(family)
    torch.manual_seed(0)
    prepared = method.apply(base, "methods.m")
    model, model_type = prepared.model, family.model.config.model_type
    with torch.inference_mode():
        before = family.model(**batch).logits
    train_vision_beside(model, model_type, vision)
    if prepared.initial_adapter is not None:
        write_start(prepared.initial_adapter | beside_adapter(model), directory / "start")
    with torch.inference_mode():
        assert torch.allclose(model(**batch).logits, before, atol=1e-3), "it starts as the model that it was"
    named = dict(family.model.named_parameters())
    of_vision = {name for name in named if (part := part_of(model_type, name)) and vision.trains(part)}
    added = sum(p.numel() for name, p in model.named_parameters() if method.is_added(name))
    sizes = _sizes(method, prepared)
    assert sizes["parameters"] == family.model.num_parameters()
    assert sizes["parameters_trainable"] == added + sum(named[name].numel() for name in of_vision)
    optimizer = torch.optim.AdamW(prepared.parameter_groups(model, 0.01, 0.0))
    model.train()
    for _ in range(2):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.inference_mode():
        trained = model(**batch).logits
    assert (trained - before).abs().max() > 1e-3
    start = directory / "start" if prepared.initial_adapter is not None else None
    save_adapter(model, directory / "adapter", "base", start=start)
    tensors = load_file(directory / "adapter" / "adapter_model.safetensors")
    saved = {name.removeprefix("base_model.model.") for name in tensors}
    assert of_vision <= saved
    merged = merge_adapter(load_causal_lm(family.directory), directory / "adapter").eval()
    again = load_adapter(load_causal_lm(family.directory), directory / "adapter").eval()
    with torch.inference_mode():
        assert torch.allclose(again(**batch).logits, trained, atol=1e-3)
        assert torch.allclose(merged(**batch).logits, trained, atol=1e-3)
    changed = {name for name, parameter in merged.named_parameters() if not torch.equal(parameter, named[name])}
    # The bias of a key's projection, and what follows a tower's last used layer, get no gradient.
    assert {name for name in changed if part_of(model_type, name)} <= of_vision
    assert any(name in changed for name in of_vision)


@pytest.mark.parametrize("kind", METHODS)
def test_a_projector_is_trained_beside_any_adapter(llava: Family, kind: str, tmp_path: Path) -> None:
    _check(llava, kind, PROJECTOR, tmp_path)


def test_both_are_trained_in_every_family(family: Family, tmp_path: Path) -> None:
    _check(family, "lora", BOTH, tmp_path)


def test_a_tower_is_trained_without_the_projector_that_is_in_it(tmp_path: Path) -> None:
    _check(Family("qwen2_5_vl", tmp_path / "model"), "loha", Vision(tower="trained"), tmp_path)
