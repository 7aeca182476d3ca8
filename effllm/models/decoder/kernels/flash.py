"""Causal attention of a training step by FlashAttention 4's kernels for Hopper GPUs, which beat cuDNN's there."""

from typing import Any

import torch
from torch import Tensor

from effllm.models.decoder.kernels.choice import absence_of, failing_as_a_cell, is_hopper

# Smaller heads are faster by cuDNN.
_HEAD_DIM = 128


def objection_to_flash(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """What speaks against `flash_attention` for [batch, heads, length, d]; None where it can."""
    if query.device.type != "cuda":
        return f"it needs CUDA, not {query.device.type}"
    if query.dtype != torch.bfloat16 or key.dtype != torch.bfloat16 or value.dtype != torch.bfloat16:
        return "it is for bfloat16"
    if not query.shape[-1] == value.shape[-1] == _HEAD_DIM:
        return f"it is for head dimensions of {_HEAD_DIM}"
    if key.shape[2] != query.shape[2]:
        return "there are cached keys"
    if not torch.is_grad_enabled():
        return "nothing is trained"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward pass adds up in another order each time, and the run is deterministic"
    return _absence()


@torch.compiler.assume_constant_result
def _absence() -> str | None:
    if not is_hopper():
        return "it is for Hopper GPUs"
    return absence_of("flash_attn.cute.interface", "flash-attn-4")


@torch.library.custom_op("effllm::flash_attention", mutates_args=(), device_types="cuda")
def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Context of [batch, length, heads, d], and the log-sum-exp of its scores [batch, heads, length] in float32."""
    from flash_attn.cute.interface import _flash_attn_fwd

    launch = failing_as_a_cell("flash_attn_4 of attention")(_flash_attn_fwd)
    context, log_sum, *_ = launch(query, key, value, softmax_scale=scale, causal=True, return_lse=True)
    return context, log_sum


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, length, heads, size = query.shape
    context = query.new_empty((batch, length, heads, size))
    return context, query.new_empty((batch, heads, length), dtype=torch.float32)


@torch.library.custom_op("effllm::flash_attention_backward", mutates_args=(), device_types="cuda")
def _backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, context: Tensor, log_sum: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    launch = failing_as_a_cell("flash_attn_4 of attention")(_flash_attn_bwd)
    gradients = [torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (query, key, value)]
    launch(
        query, key, value, context, upstream, log_sum, scale, True,
        dq=gradients[0], dk=gradients[1], dv=gradients[2],
    )  # fmt: skip
    return gradients[0], gradients[1], gradients[2]


@_backward.register_fake
def _(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, context: Tensor, log_sum: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    made = [each.new_empty(each.shape) for each in (query, key, value)]
    return made[0], made[1], made[2]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.set_materialize_grads(False)


def _back(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_backward(upstream.contiguous(), *ctx.saved_tensors, ctx.scale), None


_forward.register_autograd(_back, setup_context=_keep)


def flash_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v over the past, for [batch, heads, length, d] with keys and values in as many or fewer."""
    context, _ = _forward(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale)
    return context.transpose(1, 2)
