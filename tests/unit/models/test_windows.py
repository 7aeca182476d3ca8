"""Qwen's vision towers attend to all windows of one length at once, as the library does to one after the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from effllm.models.loading import load_causal_lm
from tests.unit.models.vision import Family

# At patches of 2 pixels, in windows of 8: whole ones, and narrower ones at the edges.
IMAGES = [Image.effect_noise(size, 90).convert("RGB") for size in ((16, 16), (28, 10), (10, 26))]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    family = Family("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))
    settings = family.model.config.vision_config
    family.model.model.visual.fullatt_block_indexes = settings.fullatt_block_indexes = []
    family.model.model.visual.window_size = settings.window_size = 8
    family.model.save_pretrained(family.directory)
    return family


def _encoded(model: Any, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    features = torch.cat(model.get_image_features(**given).pooler_output)
    model.zero_grad()
    features.square().sum().backward()
    return features.detach(), [p.grad.clone() for p in model.model.visual.parameters() if p.grad is not None]


def test_windows_of_one_length_are_one_product(family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = family.processing.batch(IMAGES)
    calls: list[torch.Size] = []
    plain = F.scaled_dot_product_attention

    def counted(query: torch.Tensor, *rest: Any, **settings: Any) -> torch.Tensor:
        calls.append(query.shape)
        return plain(query, *rest, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    expected, gradients = _encoded(family.model, given)
    one_by_one = len(calls)
    calls.clear()
    model = load_causal_lm(family.directory)
    model.model.visual.fullatt_block_indexes = []
    features, own = _encoded(model, given)
    assert torch.allclose(features, expected, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(own, gradients, strict=True))
    lengths = [shape[-2] for shape in calls]
    assert len(lengths) == len(set(lengths)) < one_by_one, "one product for each length, in the one layer"
    assert len(lengths) > 1, "the images have windows of several lengths"
    model.save_pretrained(tmp_path)
    assert "effllm" not in (tmp_path / "config.json").read_text()
