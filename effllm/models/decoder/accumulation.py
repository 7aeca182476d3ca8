"""Gradients with many summands, added up in float32 where the model computes in 16 bit."""

from typing import Any

import torch
from torch import Tensor

# Rows whose gradient exists in float32 at once: 128 MiB at 128 numbers each.
_ROWS = 1 << 18


def widen(states: Tensor) -> Tensor:
    """In float32, or as it is in double precision.

    Autograd adds up what the uses of a tensor contribute to its gradient in the tensor's own type. Keys that hundreds
    of chunks or queries read lose whole per cents in bfloat16, whose sums stop growing at 256 times a summand.
    """
    return states.to(torch.promote_types(states.dtype, torch.float32))


def gather_rows(states: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """states [n, d] at rows [m], in type `dtype`: [m, d].

    index_select, except that the gradients of a row that is gathered often add up in float32: on a GPU index_select
    adds them up in their own type.
    """
    return _GatherRows.apply(states, rows, dtype)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size, ctx.dtype = states.shape, states.dtype
        return states.to(dtype).index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        total = gradient.new_zeros(ctx.size, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for part, index in zip(gradient.split(_ROWS), rows.split(_ROWS), strict=True):
            total.index_add_(0, index, part.to(total.dtype))
        return total.to(ctx.dtype), None, None
