"""The language-modelling loss by a fused kernel, for bfloat16 logits on CUDA.

A training step at 150,000 words spends a tenth of its memory traffic on the logits. The kernel reads them twice and
writes their gradient once, in their place and already divided by the number of labels, where plain PyTorch goes through
float32 probabilities and back.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from effllm.models.decoder.kernels.choice import failing_as_a_cell

_BLOCK, _WARPS = 8192, 16


@failing_as_a_cell("of the loss")
def _forward(logits: Tensor, targets: Tensor, scale: Tensor, ignored: int) -> Tensor:
    """Losses [n] in float32 of logits [n, words], which become their gradient times `scale`, a float32 number."""
    from effllm.models.decoder.kernels import loss_triton as kernels

    rows, words = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)
    kernels.cross_entropy_kernel[(rows,)](
        logits, targets, scale, losses, logits.stride(0), words, IGNORED=ignored, BLOCK=_BLOCK, num_warps=_WARPS
    )
    return losses


@failing_as_a_cell("of the loss")
def _scale(x: Tensor, factor: Tensor) -> None:
    """x *= factor, a number on the device, which costs nothing where it is 1 and waits for nothing."""
    from effllm.models.decoder.kernels import loss_triton as kernels

    kernels.scale_kernel[(-(-x.numel() // _BLOCK),)](x, factor, x.numel(), BLOCK=_BLOCK, num_warps=_WARPS)


@torch.compiler.disable
def fused_cross_entropy(logits: Tensor, targets: Tensor, items: Tensor | int, ignored: int) -> Tensor:
    """Sum over the rows of -log softmax(logits)[target] / items; the logits [n, words] are used up by it.

    A compiled graph would copy them before the kernel, and its result after it.
    """
    scale = torch.as_tensor(items, dtype=torch.float32, device=logits.device).reciprocal()
    return _CrossEntropy.apply(logits, targets, scale, ignored)


class _CrossEntropy(torch.autograd.Function):
    """Autograd does not see what the kernels write: it is told, so that who reads the logits later, or goes back
    through the graph twice, gets an error and not wrong numbers.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, scale: Tensor, ignored: int) -> Tensor:
        gradient = logits.detach()
        losses = _forward(gradient, targets, scale, ignored)
        increment_version(gradient)
        ctx.save_for_backward(gradient)
        return losses.sum() * scale

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        _scale(gradient, upstream)
        increment_version(gradient)
        return gradient, None, None, None
