"""Attention to selected blocks of keys (NSA, eq. 11 and 12), as operators of torch for CUDA tensors in 16 bit.

The gradient of keys and values goes by block: the queries that read it, in the order of their positions, in segments of
bounded length whose sums are added up in order. So it gives the same bits each time, and a block that every query
reads, as the first one is, costs no more per reader than any other.
"""

from typing import Any

import torch
from torch import Tensor

from effllm.models.decoder.kernels.choice import failing_as_a_cell

# Readers of a block that one program takes, and how many of them at once.
_SEGMENT, _AT_ONCE = 128, 8
# Keys whose segments one program adds up.
_SUMMED_ROWS = 8
# Warps of a program that has one query, and of one that has a segment.
_QUERY_WARPS, _SEGMENT_WARPS = 4, 4


@torch.library.custom_op("effllm::selected_forward", mutates_args=(), device_types="cuda")
@failing_as_a_cell("of selected attention")
def forward(
    query: Tensor, key: Tensor, value: Tensor, blocks: Tensor, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Context [B, H, T, D] and log-sum-exp [B, H, T] of query over the blocks [B, H / G, T, n] of key and value."""
    from effllm.models.decoder.kernels import selection_triton as kernels

    batch, heads, length, _ = query.shape
    context = torch.empty_like(query)
    lse = query.new_empty((batch, heads, length), dtype=torch.float32)
    kernels.forward_kernel[(length, batch * key.shape[1])](
        query,
        key,
        value,
        blocks,
        context,
        lse,
        *_sizes(query, key, blocks),
        scale,
        **_tiles(query, key, block_size, 16, _QUERY_WARPS),
    )
    return context, lse


@forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, blocks: Tensor, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("effllm::selected_backward", mutates_args=(), device_types="cuda")
@failing_as_a_cell("of selected attention")
def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    context: Tensor,
    lse: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from that of the context [B, H, T, D]."""
    from effllm.models.decoder.kernels import selection_triton as kernels

    batch, _, length, dim = query.shape
    groups = batch * key.shape[1]
    sizes = _sizes(query, key, blocks)
    query_gradient, delta = torch.empty_like(query), torch.empty_like(lse)
    kernels.query_gradient_kernel[(length, groups)](
        query, key, value, blocks, context, lse, gradient, query_gradient, delta, *sizes, scale,
        **_tiles(query, key, block_size, 16, _QUERY_WARPS),
    )  # fmt: skip
    readers, segments = readers_of_blocks(blocks.view(groups, length, -1), block_size)
    count = segments.block.shape[1]
    parts = [lse.new_empty(groups, count, block_size, dim) for _ in range(2)]
    kernels.segment_kernel[(count, groups)](
        query, key, value, lse, delta, gradient, readers, segments.block, segments.begin, segments.end, *parts,
        *sizes[:3], readers.shape[1], count, scale, QN=_AT_ONCE, **_tiles(query, key, block_size, 2, _SEGMENT_WARPS),
    )  # fmt: skip
    key_gradient, value_gradient = torch.empty_like(key), torch.empty_like(value)
    tiles = _tiles(query, key, block_size, 1, _QUERY_WARPS)
    del tiles["GP"]
    blocks_of_group = segments.first.shape[1]
    kernels.sum_kernel[(blocks_of_group, block_size // _SUMMED_ROWS, groups)](
        *parts, segments.first, segments.last, key_gradient, value_gradient, length, count, blocks_of_group,
        ROWS=_SUMMED_ROWS, **tiles,
    )  # fmt: skip
    return query_gradient, key_gradient, value_gradient


@backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    context: Tensor,
    lse: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class Segments:
    """Who adds to which block: of each segment its block and readers, of each block its segments.

    block, begin, end: [groups, segments]; a segment of no reader has begin = end. first, last: [groups, blocks].
    """

    def __init__(self, block: Tensor, begin: Tensor, end: Tensor, first: Tensor, last: Tensor):
        self.block, self.begin, self.end, self.first, self.last = (
            states.to(torch.int32).contiguous() for states in (block, begin, end, first, last)
        )


def readers_of_blocks(blocks: Tensor, block_size: int, segment: int = _SEGMENT) -> tuple[Tensor, Segments]:
    """blocks [groups, T, n] turned around: readers [groups, T n], queries sorted by block, and their segments.

    Blocks that begin behind their query come last and belong to no segment. The number of segments is a bound that is
    known beforehand, so that nothing waits for the device.
    """
    groups, length, chosen = blocks.shape
    count = -(-length // block_size)
    position = torch.arange(length, device=blocks.device)[:, None]
    keys = blocks.where(blocks * block_size <= position, count).view(groups, -1)
    ordered, order = keys.sort(dim=1, stable=True)
    readers = (order // chosen).to(torch.int32)
    edges = torch.arange(count + 1, device=blocks.device, dtype=ordered.dtype).expand(groups, -1).contiguous()
    start = torch.searchsorted(ordered, edges)
    number = -((start[:, :-1] - start[:, 1:]) // segment)
    last = number.cumsum(dim=1)
    first = last - number
    # Every block leaves at most one segment that is not full.
    index = torch.arange(count + length * chosen // segment, device=blocks.device).expand(groups, -1).contiguous()
    block = torch.searchsorted(last, index, right=True)
    is_used = block < count
    block = block.clamp(max=count - 1)
    begin = start.gather(1, block) + (index - first.gather(1, block)) * segment
    end = torch.minimum(begin + segment, start.gather(1, block + 1))
    return readers, Segments(block, begin.where(is_used, 0), end.where(is_used, 0), first, last)


class SelectedAttention(torch.autograd.Function):
    """Attention of query [B, H, T, D] to the selected blocks [B, H / G, T, n] of key and value."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Tensor, block_size: int, scale: float
    ) -> Tensor:
        query, key, value, blocks = (states.contiguous() for states in (query, key, value, blocks))
        context, lse = forward(query, key, value, blocks, block_size, scale)
        ctx.save_for_backward(query, key, value, blocks, context, lse)
        ctx.rule = (block_size, scale)
        return context

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.rule), None, None, None


def _sizes(query: Tensor, key: Tensor, blocks: Tensor) -> tuple[int, int, int, int]:
    heads = query.shape[1]
    return heads, heads // key.shape[1], query.shape[2], blocks.shape[-1]


def _tiles(query: Tensor, key: Tensor, block_size: int, least_rows: int, warps: int) -> dict[str, int]:
    """Tile sizes; a query's heads are padded to a power of 2, at least `least_rows` where they are a tile alone."""
    group, dim = query.shape[1] // key.shape[1], query.shape[3]
    return {
        "LB": block_size,
        "GP": max(least_rows, 1 << (group - 1).bit_length()),
        "D": dim,
        "BD": max(16, 1 << (dim - 1).bit_length()),
        "num_warps": warps,
    }
