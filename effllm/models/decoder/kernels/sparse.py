"""The three attentions of NSA (arXiv 2502.11089, eq. 5 to 12) by fused kernels, for whole sequences without padding."""

from collections.abc import Callable

import torch
from torch import Tensor

from effllm.models.decoder.kernels import strided
from effllm.models.decoder.kernels.selection import SelectedAttention
from effllm.models.decoder.kernels.strided import StridedAttention


def sparse_attention(
    query: Tensor,
    gates: Tensor,
    compressed: tuple[Tensor, Tensor],
    selection: tuple[Tensor, Tensor],
    local: tuple[Tensor, Tensor],
    select: Callable[[Tensor], Tensor],
    stride: int,
    block: int,
    selection_block: int,
    window: int,
) -> Tensor:
    """The gated sum of the branches, [B, H, T, D].

    query [B, H, T, D], gates [B, H, T, 3], the branches' keys and values [B, H / G, T, D], the compressed ones
    [B, H / G, (T - block) // stride + 1, D]. `select` chooses blocks [B, H / G, T, n] by their importance
    [B, H / G, T, blocks].
    """
    scale = query.shape[-1] ** -0.5
    key, value = compressed
    gate = gates.unbind(dim=-1)
    if key.shape[2]:
        context, lse = StridedAttention.apply(query, key, value, scale, stride, block, 0)
        with torch.no_grad():
            importance = strided.block_importance(query, key, lse, scale, stride, block, selection_block)
        output = gate[0][..., None] * context
    else:
        blocks = -(-query.shape[2] // selection_block)
        importance = query.new_zeros((query.shape[0], key.shape[1], query.shape[2], blocks), dtype=torch.float32)
        output = torch.zeros_like(query)
    chosen = select(importance)
    output = output + gate[1][..., None] * SelectedAttention.apply(query, *selection, chosen, selection_block, scale)
    context, _ = StridedAttention.apply(query, *local, scale, 1, 1, window)
    return output + gate[2][..., None] * context
