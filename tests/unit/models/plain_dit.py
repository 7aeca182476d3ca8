"""The diffusion transformer of Peebles and Xie in torch alone, from a checkpoint of `DiT` with mha and gelu."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def plain(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], images: Tensor, times: Tensor, labels: Tensor
) -> Tensor:
    """Sections 3.1 and 3.2 by torch's convolution and multi-head attention, one module after the other."""
    width, patch = config["hidden_size"], config["patch_size"]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        standard = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return standard * (1 + scale[:, None]) + shift[:, None]

    kernel = weights["patch_proj.weight"].view(width, config["channels"], patch, patch)
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
    for index in range(config["num_hidden_layers"]):
        name = f"layers.{index}"
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = linear(f"{name}.modulation", condition).chunk(6, 1)
        y = norm(x, shift_a, scale_a).transpose(0, 1)
        attention, _ = F.multi_head_attention_forward(
            y, y, y, width, config["num_attention_heads"],
            torch.cat([weights[f"{name}.attn.{part}_proj.weight"] for part in "qkv"]),
            torch.cat([weights[f"{name}.attn.{part}_proj.bias"] for part in "qkv"]),
            None, None, False, 0.0, weights[f"{name}.attn.o_proj.weight"], weights[f"{name}.attn.o_proj.bias"],
        )  # fmt: skip
        x = x + gate_a[:, None] * attention.transpose(0, 1)
        y = F.gelu(linear(f"{name}.mlp.up_proj", norm(x, shift_f, scale_f)), approximate="tanh")
        x = x + gate_f[:, None] * linear(f"{name}.mlp.down_proj", y)
    y = linear("output_proj", norm(x, *linear("modulation", condition).chunk(2, 1))).transpose(1, 2)
    channels = 2 * config["channels"]
    # torch's fold wants the channels before the places of a patch.
    y = y.unflatten(1, (patch**2, channels)).transpose(1, 2).flatten(1, 2)
    return F.fold(y, images.shape[-1], patch, stride=patch)
