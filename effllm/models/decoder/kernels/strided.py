"""Attention to keys at equal distances, as operators of torch: see `strided_triton` for what a query sees.

The operators take CUDA tensors in 16 bit. Triton is imported when the first of them runs.
"""

from typing import Any

import torch
from torch import Tensor

from effllm.models.decoder.kernels.choice import failing_as_a_cell

# Queries and keys of a tile, and how a program runs over them.
_ROWS, _KEYS, _WARPS, _STAGES = 64, 64, 4, 2
# Programs of the key gradient that fill a GPU several times over.
_PROGRAMS = 512


@torch.library.custom_op("effllm::strided_forward", mutates_args=(), device_types="cuda")
@failing_as_a_cell("of strided attention")
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    far: Tensor | None,
    far_lse: Tensor | None,
    scale: float,
    stride: int,
    block: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Context [B, H, T, D] and log-sum-exp [B, H, T] of query [B, H, T, D] over key, value [B, H / G, TK, D].

    `bias` [H, window] is added to the scaled scores by distance. `far` [B, H, T - window, D] and `far_lse` are the
    context and log-sum-exp of the queries from `window` on over other keys; the result is then of both together.
    """
    from effllm.models.decoder.kernels import strided_triton as kernels

    batch, heads, length, dim = query.shape
    context = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty((batch, heads, length), dtype=torch.float32)
    kernels.forward_kernel[(-(-length // _ROWS), batch * heads)](
        query, key, value, bias, far, far_lse, context, lse,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        heads, heads // key.shape[1], length, key.shape[2], scale,
        STRIDE=stride, BLOCK=block, WINDOW=window, HAS_BIAS=bias is not None, HAS_FAR=far is not None,
        **_tiles(dim),
    )  # fmt: skip
    return context, lse


@forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    far: Tensor | None,
    far_lse: Tensor | None,
    scale: float,
    stride: int,
    block: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    shape = query.shape
    return query.new_empty(shape), query.new_empty(shape[:3], dtype=torch.float32)


@torch.library.custom_op("effllm::strided_backward", mutates_args=(), device_types="cuda")
@failing_as_a_cell("of strided attention")
def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    context: Tensor,
    lse: Tensor,
    far_gradient: Tensor | None,
    scale: float,
    stride: int,
    block: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and bias [H, window], the last empty without a bias.

    `context` and `lse` may be those of a softmax over more keys than these. `far_gradient` [B, H, T - window, D] is
    what those keys add to the gradient of the queries from `window` on. Keys and values get theirs in float32.
    """
    from effllm.models.decoder.kernels import strided_triton as kernels

    batch, heads, length, dim = query.shape
    groups, keys = key.shape[1:3]
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    sizes = (heads, heads // groups, length, keys)
    mask = {"STRIDE": stride, "BLOCK": block, "WINDOW": window, "HAS_BIAS": bias is not None}
    gradient = gradient.contiguous()
    query_gradient = torch.empty_like(context)
    delta = torch.empty_like(lse)
    shares = None
    if bias is not None:
        shares = lse.new_empty(batch, heads, length, window)
        shares[:, :, :window] = 0
    kernels.query_gradient_kernel[(-(-length // _ROWS), batch * heads)](
        query, key, value, bias, context, lse, gradient, far_gradient, query_gradient, delta, shares,
        *strides, *sizes, scale,
        **mask, HAS_FAR=far_gradient is not None, **_tiles(dim),
    )  # fmt: skip
    blocks = -(-keys // _KEYS)
    # Few keys, each seen by all queries after it: several programs share the queries of a key.
    slabs = 1 if window else max(1, min(-(-length // 256), _PROGRAMS // (blocks * batch * heads)))
    slab = -(-length // slabs // _ROWS) * _ROWS
    slabs = -(-length // slab)
    parts = [lse.new_empty(slabs, batch, heads, keys, dim) for _ in range(2)]
    kernels.key_gradient_kernel[(blocks, slabs, batch * heads)](
        query, key, value, bias, lse, delta, gradient, *parts, *strides, *sizes, slab, scale, **mask, **_tiles(dim)
    )  # fmt: skip
    of_group = (slabs, batch, groups, heads // groups, keys, dim)
    key_gradient, value_gradient = (part.view(of_group).sum(dim=(0, 3)) for part in parts)
    bias_gradient = lse.new_empty(0) if shares is None else shares.sum(dim=(0, 2))
    return query_gradient, key_gradient, value_gradient, bias_gradient


@backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    context: Tensor,
    lse: Tensor,
    far_gradient: Tensor | None,
    scale: float,
    stride: int,
    block: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias_gradient = lse.new_empty(0 if bias is None else bias.shape)
    return (
        torch.empty_like(context),
        key.new_empty(key.shape, dtype=torch.float32),
        value.new_empty(value.shape, dtype=torch.float32),
        bias_gradient,
    )


@torch.library.custom_op("effllm::block_importance", mutates_args=(), device_types="cuda")
@failing_as_a_cell("of strided attention")
def block_importance(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    scale: float,
    stride: int,
    block: int,
    selection_block: int,
) -> Tensor:
    """NSA's importance of each selection block to each query and group of heads, [B, H / G, T, blocks] in float32.

    `lse` [B, H, T] is that of the compressed branch: probabilities are made anew, and never all in memory.
    """
    from effllm.models.decoder.kernels import strided_triton as kernels

    batch, heads, length, dim = query.shape
    groups, keys = key.shape[1:3]
    blocks = -(-length // selection_block)
    importance = lse.new_empty(batch, groups, length, blocks)
    tiles = _tiles(dim)
    kernels.importance_kernel[(-(-length // _ROWS), -(-blocks // 32), batch * groups)](
        query, key, lse, importance, *query.stride()[:3], *key.stride()[:3],
        heads, heads // groups, length, keys, blocks, scale,
        STRIDE=stride, BLOCK=block, PER_BLOCK=selection_block // stride, PER_WINDOW=block // stride,
        D=dim, BD=tiles["BD"], BM=_ROWS, BJ=32, num_warps=4,
    )  # fmt: skip
    return importance


@block_importance.register_fake
def _(query: Tensor, key: Tensor, lse: Tensor, scale: float, stride: int, block: int, selection_block: int) -> Tensor:
    batch, _, length, _ = query.shape
    return lse.new_empty(batch, key.shape[1], length, -(-length // selection_block))


class StridedAttention(torch.autograd.Function):
    """softmax(scale q k^T) v over the keys that a query sees, and its log-sum-exp, which has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, stride: int, block: int, window: int
    ) -> tuple[Tensor, Tensor]:
        context, lse = forward(query, key, value, None, None, None, scale, stride, block, window)
        ctx.save_for_backward(query, key, value, context, lse)
        ctx.rule = (scale, stride, block, window)
        ctx.mark_non_differentiable(lse)
        return context, lse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        query, key, value, context, lse = ctx.saved_tensors
        of_query, of_key, of_value, _ = backward(gradient, query, key, value, None, context, lse, None, *ctx.rule)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None, None, None


def _tiles(dim: int) -> dict[str, int]:
    """Tile sizes for a head dimension, padded to a power of 2 that the tensor cores take."""
    return {
        "D": dim,
        "BD": max(16, 1 << (dim - 1).bit_length()),
        "BM": _ROWS,
        "BN": _KEYS,
        "num_warps": _WARPS,
        "num_stages": _STAGES,
    }
