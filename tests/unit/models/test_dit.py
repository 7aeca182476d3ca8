"""Diffusion transformers: published sizes, FLOPs as torch counts them, outputs of plain torch, checkpoints."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from effllm.models.dit import DiT, DiTConfig, costs
from effllm.models.dit.architecture import DiTArchitecture

from .conftest import ATTENTIONS

VARIANTS = [(attention, "gelu") for attention in ATTENTIONS] + [("mha", "moe"), ("gqa", "swiglu")]
# Layers, width, heads, patch; parameters in millions with the fixed positions among them, and multiply-adds in billions
# as published (arXiv 2212.09748, table 4 and section 4).
PUBLISHED = {
    "XL/2": ((28, 1152, 16, 2), 675, 118.64),
    "L/8": ((24, 1024, 16, 8), 459, 5.01),
    "B/4": ((12, 768, 12, 4), 130, 5.56),
}


def small(attention: str = "mha", feed_forward: str = "gelu", **changes) -> DiT:
    """16 patches of 3 channels, with no weight left at zero."""
    keys = {"image_size": 8, "channels": 3, "patch_size": 2, "classes": 5, "hidden_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = DiTConfig(**(keys | {"num_attention_heads": 4} | changes), attention=attention, feed_forward=feed_forward)
    model = DiT(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


def batch(size: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.tensor([0.0, 431.0, 999.0])[:size], torch.arange(size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_costs_are_the_published_ones(name):
    (layers, width, heads, patch), millions, billions = PUBLISHED[name]
    config = DiTConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, patch_size=patch)
    fixed = (32 // patch) ** 2 * width
    assert round((costs.parameter_count(config).total + fixed) / 1e6) == millions
    # Published rounded, and without what timestep and label cost.
    assert costs.forward_flops(config) / 2e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize(("attention", "feed_forward"), VARIANTS)
def test_parameters_and_flops_are_those_of_the_model(attention, feed_forward):
    # On CPUs values narrower than keys are padded, which torch counts.
    model = small(attention, feed_forward, **({"v_head_dim": 12} if attention == "mla" else {}))
    assert costs.parameter_count(model.config).total == sum(weight.numel() for weight in model.parameters())
    images, times, labels = batch(1)
    # SDPA's fused kernel for CPUs is not among what torch counts.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, times, labels)
    assert counter.get_total_flops() == costs.forward_flops(model.config)


def plain(model: DiT, images: Tensor, times: Tensor, labels: Tensor) -> Tensor:
    """Sections 3.1 and 3.2 by torch's convolution and multi-head attention, one module after the other."""
    weights, config = dict(model.named_parameters()), model.config
    width, patch = config.hidden_size, config.patch_size

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        standard = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return standard * (1 + scale[:, None]) + shift[:, None]

    kernel = weights["patch_proj.weight"].view(width, config.channels, patch, patch)
    x = F.conv2d(images, kernel, weights["patch_proj.bias"], stride=patch)
    rows = x.shape[-1]
    for row in range(rows):
        for column in range(rows):
            for feature in range(width // 4):
                frequency = 10_000 ** (-feature / (width // 4))
                for offset, place in ((0, column), (width // 2, row)):
                    x[:, offset + feature, row, column] += math.cos(place * frequency)
                    x[:, offset + width // 4 + feature, row, column] += math.sin(place * frequency)
    x = x.flatten(2).transpose(1, 2)
    angles = times[:, None] * 10_000 ** (-torch.arange(128) / 128)
    condition = linear("time_down_proj", F.silu(linear("time_up_proj", torch.cat((angles.cos(), angles.sin()), 1))))
    condition = F.silu(condition + weights["label_embedding.weight"][labels])
    for index in range(config.num_hidden_layers):
        name = f"layers.{index}"
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = linear(f"{name}.modulation", condition).chunk(6, 1)
        y = norm(x, shift_a, scale_a).transpose(0, 1)
        attention, _ = F.multi_head_attention_forward(
            y, y, y, width, config.num_attention_heads,
            torch.cat([weights[f"{name}.attn.{part}_proj.weight"] for part in "qkv"]),
            torch.cat([weights[f"{name}.attn.{part}_proj.bias"] for part in "qkv"]),
            None, None, False, 0.0, weights[f"{name}.attn.o_proj.weight"], weights[f"{name}.attn.o_proj.bias"],
        )  # fmt: skip
        x = x + gate_a[:, None] * attention.transpose(0, 1)
        y = F.gelu(linear(f"{name}.mlp.up_proj", norm(x, shift_f, scale_f)), approximate="tanh")
        x = x + gate_f[:, None] * linear(f"{name}.mlp.down_proj", y)
    y = linear("output_proj", norm(x, *linear("modulation", condition).chunk(2, 1))).transpose(1, 2)
    channels = 2 * config.channels
    # torch's fold wants the channels before the places of a patch.
    y = y.unflatten(1, (patch**2, channels)).transpose(1, 2).flatten(1, 2)
    return F.fold(y, images.shape[-1], patch, stride=patch)


@torch.no_grad()
def test_the_model_is_the_papers_in_plain_torch():
    model, arguments = small(), batch()
    torch.testing.assert_close(model(*arguments), plain(model, *arguments), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_new_model_is_the_identity_and_predicts_nothing():
    model = DiT(small().config)
    assert model(*batch()).abs().max() == 0
    hidden = torch.randn(2, 16, 32)
    from effllm.models.decoder.attention.core import Sequence

    sequence = Sequence(0, torch.arange(16)[None], causal=False)
    assert torch.equal(model.layers[0](hidden, torch.randn(2, 32), sequence)[0], hidden)
    assert model.time_up_proj.weight.std() == pytest.approx(0.02, rel=0.1)
    bound = math.sqrt(6 / (32 + 128))
    assert model.layers[0].mlp.up_proj.weight.abs().max() == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize(("attention", "feed_forward"), VARIANTS)
def test_checkpoints_reload_and_every_weight_is_trained(attention, feed_forward, tmp_path):
    model, arguments = small(attention, feed_forward), batch()
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    output = model(*arguments)
    torch.testing.assert_close(reloaded(*arguments), output, rtol=0, atol=0)
    output.square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch_size": 3}, "image_size 8 is not a multiple of patch_size 3"),
        (
            {"attention": "nsa", "nsa_compression_block": 32, "nsa_compression_stride": 4},
            "nsa_compression_block 32 exceeds the 16 patches",
        ),
        ({"attention": "nsa", "nsa_local_blocks": 2}, "nsa_selected_blocks 2 is less than the 3 blocks"),
        ({"num_key_value_heads": 2}, "attention mha has num_key_value_heads 4, not 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_key(changes, sentence):
    keys = {"image_size": 8, "channels": 1, "patch_size": 2, "classes": 10, "hidden_size": 32, "num_hidden_layers": 1}
    with pytest.raises(ValidationError, match=sentence):
        DiTArchitecture(**({"model_type": "dit", "num_attention_heads": 4} | keys | changes))


def test_specs_hold_the_keys_of_the_parts_that_are_used():
    keys = {"image_size": 8, "channels": 1, "patch_size": 2, "classes": 10, "hidden_size": 32, "num_hidden_layers": 1}
    plain_keys = DiTArchitecture(model_type="dit", num_attention_heads=4, **keys).plain()
    assert not [key for key in plain_keys if key.startswith(("nsa_", "qk_", "moe_", "num_experts", "router_"))]
    sparse = DiTArchitecture(model_type="dit", num_attention_heads=4, attention="nsa", **keys)
    assert sparse.plain().keys() - plain_keys.keys() == {key for key in DiTArchitecture.model_fields if "nsa" in key}
    assert DiTConfig(**sparse.settings()).nsa_compression_block == 4
