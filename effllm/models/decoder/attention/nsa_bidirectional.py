"""NSA over sequences without an order in time, such as the patches of an image: the same branches, unbounded by t.

arXiv 2502.11089 is about text, and arXiv 2505.13840, which puts NSA into diffusion transformers, does not say how. Here
every token sees both sides:

compression: all complete blocks, whatever the query
selection: blocks scored by those probabilities as in eq. 8 to 10; the blocks nearer than `local_blocks` on either side
    and the first `initial_blocks` always, then the best, `selected_blocks` in all
window: the tokens at most w / 2 away, on either side

Latents of images have tens to a few hundreds of tokens. At these lengths attention to all keys under a mask is quicker
than fetching the selected ones, so that a query's choice is a mask of size T x T, and nothing is saved but by the
compressed branch: the cost formulas count both masked branches in full.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from effllm.models.decoder.attention.nsa_branches import KVContext, SparseShape, block_importance


def bidirectional_attention(
    query: Tensor, gates: Tensor, tokens: KVContext, window_key: Tensor, window_value: Tensor, shape: SparseShape
) -> Tensor:
    """The gated sum of the branches, [batch, heads, T, d].

    `query` is [batch, heads, T, d], `gates` [batch, heads, T, 3]; keys and values are [batch, kv heads, .., d].
    """
    compressed, importance = _compressed(query, tokens, shape)
    chosen = select_both_sides(importance, shape)
    length = query.shape[2]
    of_blocks = torch.zeros_like(importance, dtype=torch.bool).scatter(-1, chosen, True)
    selected = of_blocks.repeat_interleave(shape.selection_block, dim=-1)[..., :length]
    index = torch.arange(length, device=query.device)
    near = (index[:, None] - index).abs() <= shape.window // 2
    gate = gates.unsqueeze(-1).unbind(dim=-2)
    output = gate[0] * compressed
    output = output + gate[1] * _masked(query, tokens.key, tokens.value, selected)
    return output + gate[2] * _masked(query, window_key, window_value, near[None, None])


def select_both_sides(importance: Tensor, shape: SparseShape) -> Tensor:
    """The blocks of each query, [batch, kv heads, T, n], of the importance [batch, kv heads, T, blocks]."""
    length, blocks = importance.shape[2:]
    block = torch.arange(blocks, device=importance.device)
    own = torch.arange(length, device=importance.device)[:, None] // shape.selection_block
    forced = (block < shape.initial_blocks) | ((block - own).abs() < shape.local_blocks)
    score = importance.masked_fill(forced, torch.inf)
    return score.topk(min(shape.selected_blocks, blocks), dim=-1, sorted=False).indices


def _compressed(query: Tensor, tokens: KVContext, shape: SparseShape) -> tuple[Tensor, Tensor]:
    """Attention over all compressed blocks, and the importance [batch, kv heads, T, blocks] of selection blocks."""
    batch, heads, length, dim = query.shape
    key, value = tokens.compressed_key.to(query.dtype), tokens.compressed_value.to(query.dtype)
    groups, count = key.shape[1:3]
    scores = query.reshape(batch, groups, -1, dim) @ key.transpose(2, 3)
    probabilities = (scores * dim**-0.5).float().softmax(dim=-1)
    context = (probabilities.to(query.dtype) @ value).view(query.shape)
    shared = probabilities.detach().view(batch, groups, heads // groups, length, count).sum(dim=2)
    return context, block_importance(shared, -(-length // shape.selection_block), shape)


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention under a mask [batch or 1, kv heads or 1, T, T], the query heads of a group side by side.

    Folded so, no key is repeated: with a mask, CUDA's only kernel for grouped heads materialises the scores.
    """
    groups = key.shape[1]
    folded = query.reshape(query.shape[0], groups, -1, query.shape[-1])
    ratio = query.shape[1] // groups
    repeated = mask.unsqueeze(2).expand(-1, -1, ratio, -1, -1).flatten(2, 3)
    context = F.scaled_dot_product_attention(folded, key.to(query.dtype), value.to(query.dtype), attn_mask=repeated)
    return context.view(query.shape)
