"""Layers of the rotary, sinusoidal, learned and relative position encodings."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig


def rotary_angles(position_ids: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of m * theta^(-2i/dim), each [batch, 1, length, dim / 2], float32 (RoFormer, eq. 15).

    `position_ids` is [batch, length]. The frequencies are computed here and not kept in a buffer, so that they are
    right in float32 whatever the model is cast to.
    """
    exponent = torch.arange(0, dim, 2, device=position_ids.device, dtype=torch.float32) / dim
    angle = position_ids[:, None, :, None].float() * theta**-exponent
    return angle.cos(), angle.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x_i, x_{i + dim/2}) of x [batch, heads, length, dim] by their angles (RoFormer, eq. 34).

    Pairs are half a head apart, as in Llama and Qwen2, not adjacent.
    """
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class SinusoidalEmbedding(nn.Module):
    """Vaswani et al. 2017, sections 3.4 and 3.5: h_0 = sqrt(d) E[token] + PE, without parameters.

    PE(m, 2i) = sin(m / 10000^(2i/d)), PE(m, 2i + 1) = cos(m / 10000^(2i/d)).

    The factor sqrt(d) is part of the method: without it the encoding, of unit amplitude, drowns an embedding whose
    standard deviation is near 0.01.
    """

    def forward(self, embeddings: Tensor, position_ids: Tensor) -> Tensor:
        """Add to embeddings [batch, length, hidden] the encoding of position_ids [batch, length]."""
        hidden = embeddings.shape[-1]
        exponent = torch.arange(0, hidden, 2, device=position_ids.device, dtype=torch.float32) / hidden
        angle = position_ids[..., None].float() * 10000.0**-exponent
        encoding = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :hidden]
        return embeddings * math.sqrt(hidden) + encoding.to(embeddings.dtype)


class LearnedEmbedding(nn.Module):
    """Learned absolute positions (Radford et al. 2018): h_0 = E[token] + P[m], P of max_position_embeddings rows."""

    def __init__(self, config: "EffConfig"):
        super().__init__()
        self.table = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, embeddings: Tensor, position_ids: Tensor) -> Tensor:
        """Add to embeddings [batch, length, hidden] the rows of position_ids [batch, length]."""
        return embeddings + self.table(position_ids).to(embeddings.dtype)


class RelativeBias(nn.Module):
    """A learned scalar per head and clipped distance, added to the attention score (Shaw et al. 2018; T5).

    score(t, j) = q_t . k_j / sqrt(d) + b[head, min(t - j, clip)]

    Shaw's clip(j - t, -128, 128) names 257 distances; causal attention meets the 129 that are not in the future, and
    only those are stored, so that every parameter is trained. Each layer has its own table.
    """

    def __init__(self, config: "EffConfig"):
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.table = nn.Parameter(torch.zeros(config.num_attention_heads, self.max_distance + 1))

    def draw_parameters(self, std: float) -> None:
        """Draw the biases."""
        init.normal_(self.table, mean=0.0, std=std)

    def forward(self, distance: Tensor) -> Tensor:
        """[heads, *distance.shape] for distances in tokens; a negative distance, the future, is -inf."""
        values = self.table.index_select(1, distance.clamp(0, self.max_distance).flatten())
        values = values.view(-1, *distance.shape)
        return values.masked_fill(distance < 0, -torch.inf)

    def rows(self, first_query: int, queries: int, keys: int) -> Tensor:
        """The bias [heads, queries, keys] of queries first_query, first_query + 1, ... over keys 0 ... keys - 1.

        All rows are one vector read from different offsets, so the vector is looked up once, repeated, and read back
        with a row length one shorter, which moves each row by one. The gradient of that is a dense sum over the
        repeats, where indexing per element would be a scatter into 129 places.
        """
        vector = self(first_query + queries - 1 - torch.arange(keys + queries - 1, device=self.table.device))
        if queries == 1:
            return vector[:, None]
        heads, length = vector.shape
        repeated = vector[:, None].expand(-1, queries, -1).reshape(heads, -1)
        return repeated[:, queries - 1 : -1].view(heads, queries, length - 1)[..., :keys]
