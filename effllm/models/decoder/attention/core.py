"""Multi-head, grouped-query and multi-query attention, and the attention core that MLA shares with them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from effllm.models.decoder.accumulation import widen
from effllm.models.decoder.kernels.choice import is_fused, is_named, objection_to
from effllm.models.decoder.kernels.flash import flash_attention, objection_to_flash
from effllm.models.decoder.kernels.relative import near_far_attention
from effllm.models.decoder.positions import POSITIONS
from effllm.models.decoder.positions.layers import RelativeBias, rotate

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig

# Queries whose relative bias is in memory at once.
BIAS_CHUNK = 256


@dataclass
class Sequence:
    """What every layer of one forward pass shares about the batch.

    first_position: index of the first query in the padded sequence: the number of cached tokens.
    position_ids: [batch, length], positions counted from each row's first real token.
    angles: cosine and sine of the rotary embedding, each [batch, 1, length, dim / 2]; None for other positions.
    mask: what SDPA adds or masks, [batch, 1, length, keys]; None where causality is all there is.
    key_mask: [batch, keys], true for real tokens; None without padding.
    padding: [batch], padding tokens on the left; None without padding.
    causal: whether a token sees itself and the past alone; otherwise every token sees all, and nothing is cached.
    """

    first_position: int
    position_ids: Tensor
    angles: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    key_mask: Tensor | None = None
    padding: Tensor | None = None
    causal: bool = True

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate x [batch, heads, length, dim] if positions are rotary; otherwise x itself."""
        return x if self.angles is None else rotate(x, self.angles)


class GroupedQueryAttention(nn.Module):
    """softmax(q_t . k_j / sqrt(d)) v_j, with every key and value head shared by a group of query heads.

    j runs over the past up to t, or over all tokens where the sequence is not causal. MHA (Vaswani et al. 2017) has one
    query head per group, GQA (Ainslie et al. 2023) several, MQA (Shazeer 2019) all. As in Qwen2, queries, keys and
    values have a bias and the output has none, unless the configuration says otherwise. The cache holds
    2 * num_key_value_heads * head_dim numbers per token.

    Without causality, on a GPU, the three products of the input are one: an image is few tokens, and its layers wait
    for launches.
    """

    def __init__(self, config: "EffConfig", layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        width = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=True)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_output_bias)
        self.relative_bias = POSITIONS[config.position].bias(config)

    def forward(self, hidden: Tensor, sequence: Sequence, cache: Cache | None) -> Tensor:
        """[batch, length, hidden] to the same shape; new keys and values go to the cache."""
        heads = (*hidden.shape[:2], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        is_together = not sequence.causal and hidden.device.type != "cpu"
        projected = projected_together(hidden, projections) if is_together else (each(hidden) for each in projections)
        query, key, value = (states.view(heads).transpose(1, 2) for states in projected)
        query, key = sequence.rotate(query), sequence.rotate(key)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        context = dense_attention(query, key, value, sequence, self.relative_bias, self.head_dim**-0.5)
        return self.o_proj(context.transpose(1, 2).flatten(2))


def projected_together(hidden: Tensor, projections: Iterable[nn.Linear]) -> Iterable[Tensor]:
    """What each of several layers with biases makes of the same input, by one product."""
    weights, biases = zip(*((layer.weight, layer.bias) for layer in projections), strict=True)
    return F.linear(hidden, torch.cat(weights), torch.cat(biases)).split([len(bias) for bias in biases], dim=-1)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, sequence: Sequence, bias: RelativeBias | None, scale: float
) -> Tensor:
    """softmax(scale q k^T + bias) v over the keys that a query sees: [batch, heads, length, value dim].

    `query` is [batch, heads, length, d]; `key` and `value` may have fewer heads, and have the cached tokens first.
    """
    if bias is not None:
        assert sequence.causal, "the bias has no distances to the future"
        if is_fused("relative", _objection_to_near_far(query, key, value, sequence)):
            return near_far_attention(query, key.to(query.dtype), value.to(query.dtype), bias.table, scale)
        return _biased_attention(query, key, value, sequence, bias, scale)
    is_causal = sequence.causal and query.shape[2] > 1 and sequence.mask is None
    # Where there is nothing to choose from, nothing is recorded.
    is_trained_on_cuda = query.device.type == "cuda" and torch.is_grad_enabled()
    has_choice = (is_causal and is_trained_on_cuda) or is_named("attention")
    if has_choice and is_fused("attention", _objection_to_flash(query, key, value, is_causal)):
        return flash_attention(query, key, value, scale)
    fused_groups = sequence.mask is None and query.dtype in (torch.bfloat16, torch.float16)
    if query.device.type != "cpu" and not fused_groups:
        # With a mask or in float32, CUDA's only kernel for grouped heads materialises the scores.
        key, value = (_repeat_heads(states, query.shape[1]) for states in (key, value))
    return _fused_attention(query, key, value, sequence.mask, is_causal, scale)


def _objection_to_flash(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> str | None:
    if not is_causal:
        return "the attention is under a mask or sees the future"
    return objection_to_flash(query, key, value)


def _objection_to_near_far(query: Tensor, key: Tensor, value: Tensor, sequence: Sequence) -> str | None:
    """Why a bias cannot go by a near band and a far part; None where it can."""
    if objection := objection_to(query, needs=8):
        return objection
    if sequence.key_mask is not None:
        return "the batch is padded"
    if sequence.first_position or key.shape[2] != query.shape[2]:
        return "there are cached keys"
    if value.shape[-1] != query.shape[-1]:
        return "values are of another width than keys"
    if query.shape[-1] > 128:
        return "the flash kernels take head dimensions up to 128 in training"
    return None


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> Tensor:
    """SDPA. Narrower values are padded and cut again for kernels that want them as wide as keys.

    Those are the CPU's fused one, and flash on CUDA, which alone takes rows that are no multiple of 8 numbers.
    """
    width = value.shape[-1]
    if width < key.shape[-1] and (query.device.type == "cpu" or key.shape[-1] % 8):
        value = F.pad(value, (0, key.shape[-1] - width))
    grouped = key.shape[1] != query.shape[1]
    context = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
    )
    return context[..., :width]


def _biased_attention(
    query: Tensor, key: Tensor, value: Tensor, sequence: Sequence, bias: RelativeBias, scale: float
) -> Tensor:
    """Attention with a bias per head, a chunk of queries at a time.

    SDPA wants a learned bias written out, so a whole sequence would hold [heads, T, T] numbers. A chunk of C queries
    holds [batch, heads, C, T] of them, over the keys up to its last query only, and recomputes them in the backward
    pass: one extra forward of the attention is what the bias costs.
    """
    length = query.shape[2]
    recomputes = length > BIAS_CHUNK and torch.is_grad_enabled()
    if recomputes:
        key, value = widen(key), widen(value)
    key, value = (_repeat_heads(states, query.shape[1]) for states in (key, value))

    def attend(start: int, end: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = bias.rows(sequence.first_position + start, end - start, key.shape[2])[None].to(query.dtype)
        if sequence.key_mask is not None:
            padded = ~sequence.key_mask[:, None, None, : key.shape[2]]
            # Finite, because a query that is padding itself has nothing else to attend to.
            mask = mask.masked_fill(padded & (mask > -torch.inf), torch.finfo(mask.dtype).min)
        return _fused_attention(query, key.to(query.dtype), value.to(query.dtype), mask, False, scale)

    contexts = []
    for start in range(0, length, BIAS_CHUNK):
        end = min(start + BIAS_CHUNK, length)
        seen = sequence.first_position + end
        arguments = (start, end, query[:, :, start:end], key[:, :, :seen], value[:, :, :seen])
        if recomputes:
            contexts.append(checkpoint(attend, *arguments, use_reentrant=False))
        else:
            contexts.append(attend(*arguments))
    return torch.cat(contexts, dim=2)


def _repeat_heads(states: Tensor, heads: int) -> Tensor:
    """[batch, kv heads, length, d] to [batch, heads, length, d]: each head once per query head of its group."""
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], dim=1)
