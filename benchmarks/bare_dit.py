"""The baseline of `dit.py`: the diffusion transformer with multi-head attention as a page of plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effllm.models.dit import DiTConfig


class Block(nn.Module):
    """adaLN-Zero around attention and GELU."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2)])
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[batch, patches, width] to the same shape."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(condition)[:, None].chunk(6, dim=-1)
        y = self.norms[0](x) * (1 + scale_a) + shift_a
        query, key, value = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + gate_a * self.out(context)
        y = self.norms[1](x) * (1 + scale_f) + shift_f
        return x + gate_f * self.down(F.gelu(self.up(y), approximate="tanh"))


class BareDiT(nn.Module):
    """Patches by a convolution, positions as a buffer, blocks, final layer."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch, self.rows, self.channels = patch, config.image_size // patch, 2 * config.channels
        self.patches = nn.Conv2d(config.channels, width, patch, stride=patch)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(config.classes + 1, width)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, patch * patch * self.channels)
        # What the positions are does not change the time.
        self.register_buffer("positions", torch.randn(1, self.rows**2, width))

    def forward(self, images: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """The prediction for noised images, with twice their channels."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        angles = times[:, None].float() * 1e4 ** (-torch.arange(128, device=times.device) / 128)
        condition = self.time(torch.cat((angles.cos(), angles.sin()), dim=-1)) + self.labels(labels)
        for layer in self.layers:
            x = layer(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        x = self.out(self.norm(x) * (1 + scale) + shift)
        x = x.view(-1, self.rows, self.rows, self.patch, self.patch, self.channels)
        return torch.einsum("nhwpqc->nchpwq", x).flatten(4).flatten(2, 3)
