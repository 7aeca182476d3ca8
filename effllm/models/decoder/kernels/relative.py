"""Attention with a learned bias per distance, exactly, by the kernel of unbiased attention and a near band.

Distances from W on share one bias. Softmax does not see a constant, so subtract that bias from all: what is W or more
tokens away is ordinary causal attention of the queries from W on to the keys before T - W, by the flash kernel, and
only a band of W keys has a bias. The two are merged by their log-sum-exp. Backward as in ring attention: each part's
backward pass is given the merged output and log-sum-exp, from which its probabilities come out as those of the whole.
"""

from typing import Any

import torch
from torch import Tensor

from effllm.models.decoder.kernels import strided

aten = torch.ops.aten


def near_far_attention(query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T + table[h, min(i - j, W)]) v over j <= i: [B, H, T, D].

    query [B, H, T, D], key and value [B, H / G, T, D], table [H, W + 1]; any length, no padding, no cached keys.
    """
    near = (table[:, :-1] - table[:, -1:]).float().contiguous()
    return _NearFar.apply(query, key, value, near, scale)


class _NearFar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        window, length = bias.shape[1], query.shape[2]
        far = far_lse = None
        ctx.state = ()
        if length > window:
            far, far_lse, ctx.state = _far_forward(*_far(query, key, value, window), scale)
        context, lse = strided.forward(query, key, value, bias, far, far_lse, scale, 1, 1, window)
        ctx.save_for_backward(query, key, value, bias, context, lse)
        ctx.scale = scale
        return context

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, context, lse = ctx.saved_tensors
        window, length, scale = bias.shape[1], query.shape[2], ctx.scale
        gradient = gradient.contiguous()
        of_far = None
        if length > window:
            merged = (states[:, :, window:].contiguous() for states in (gradient, context, lse))
            far_gradient, far_context, far_lse = merged
            far = _far(query, key, value, window)
            of_far = _far_backward(far_gradient, far_context, far_lse, *far, ctx.state, scale)
        of_query, of_key, of_value, of_bias = strided.backward(
            gradient, query, key, value, bias, context, lse, None if of_far is None else of_far[0], scale, 1, 1, window
        )
        if of_far is not None:
            # The far part has repeated heads, whose gradients add up here.
            shape = (*key.shape[:2], -1, length - window, key.shape[3])
            of_key[:, :, :-window] += of_far[1].view(shape).sum(dim=2, dtype=torch.float32)
            of_value[:, :, :-window] += of_far[2].view(shape).sum(dim=2, dtype=torch.float32)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), of_bias, None


def _far(query: Tensor, key: Tensor, value: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """The queries from `window` on and the keys and values that are at least so far behind, one head per query head.

    The backward kernels of grouped heads take longer than the copies.
    """
    shape = (*query.shape[:2], query.shape[2] - window, query.shape[3])

    def repeated(states: Tensor) -> Tensor:
        states = states[:, :, None, : shape[2]]
        return states.expand(-1, -1, query.shape[1] // key.shape[1], -1, -1).reshape(shape).contiguous()

    return query[:, :, window:].contiguous(), repeated(key), repeated(value)


def _far_forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple]:
    """Causal attention and its log-sum-exp [B, H, T], and what the backward kernel wants back.

    cuDNN's kernel is the fastest; its backward pass gives other bits each time, FlashAttention's can be told not to.
    """
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    if is_deterministic:
        out, lse, *state, _ = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, False, scale=scale)
    else:
        out, lse, *state, _ = aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, True, False, scale=scale
        )
    return (
        out.contiguous(),
        lse.reshape(query.shape[:3]).contiguous(),
        (torch.are_deterministic_algorithms_enabled(), *state),
    )


def _far_backward(
    gradient: Tensor,
    context: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: tuple,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, where `context` and `lse` are those of the merged attention."""
    is_deterministic, cum_q, cum_k, max_q, max_k, seed, offset = state
    if is_deterministic:
        gradients = aten._scaled_dot_product_flash_attention_backward(
            gradient, query, key, value, context, lse, cum_q, cum_k, max_q, max_k, 0.0, True, seed, offset, scale=scale
        )
    else:
        gradients = aten._scaled_dot_product_cudnn_attention_backward(
            gradient, query, key, value, context, lse[..., None], seed, offset, None, cum_q, cum_k, max_q, max_k, 0.0,
            True, scale=scale,
        )  # fmt: skip
    return tuple(states.contiguous() for states in gradients)
