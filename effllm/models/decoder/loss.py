"""The language-modelling loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from effllm.models.decoder.kernels.choice import absence_of_triton, is_fused, is_named
from effllm.models.decoder.kernels.loss import fused_cross_entropy

IGNORED = -100


# Float32 probabilities that are in memory at once, in numbers: 1 GiB.
_CHUNK_ELEMENTS = 1 << 28


class _CrossEntropy(torch.autograd.Function):
    """Sum over the rows of -log softmax(logits)[target], its gradient softmax - onehot made in the forward pass.

    One pass of exponentials instead of two, and one tensor of the logits' own type, which becomes their gradient, in
    place of float32 logits, log-probabilities and gradient: at 150,000 words the largest tensors of a training step.
    Rows go through in chunks, so that float32 exists for some of them at a time. Scaling the gradient in place uses it
    up, so that a second backward pass through the same graph is an error.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        used = targets != IGNORED
        indices = targets.where(used, 0)[:, None]
        gradient = torch.empty_like(logits)
        losses = []
        rows = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
        parts = zip(logits.split(rows), indices.split(rows), gradient.split(rows), strict=True)
        for scores, index, part in parts:
            probabilities = scores.softmax(dim=-1, dtype=dtype)
            # log sum exp = max - log p[argmax], where p[argmax] is at least 1 / words; log p[target] may underflow.
            highest, place = scores.max(dim=-1, keepdim=True)
            log_sum = highest.to(dtype) - probabilities.gather(1, place).log()
            losses.append(log_sum - scores.gather(1, index).to(dtype))
            part.copy_(probabilities.scatter_add_(1, index, torch.full_like(log_sum, -1.0)))
        ctx.save_for_backward(gradient, used)
        return torch.cat(losses)[:, 0].where(used, 0).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        gradient, used = ctx.saved_tensors
        return gradient.mul_((grad_output * used)[:, None]), None


def next_token_loss(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, overwrite: bool = False
) -> Tensor:
    """Mean cross-entropy, in nats per token, of logits [batch, length, words] at position t with the label at t + 1.

    Labels of -100 are left out. With `num_items_in_batch`, as the Trainer gives it when it accumulates gradients, the
    sum is divided by that instead of by the number of these labels. `overwrite` says that nobody else reads the logits,
    which a fused kernel then turns into their gradient.
    """
    targets = F.pad(labels, (0, 1), value=IGNORED)[..., 1:].flatten()
    items = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    flat = logits.flatten(0, -2)
    # Where there is nothing to choose from, nothing is recorded.
    has_choice = (overwrite and logits.device.type == "cuda") or is_named("loss")
    if has_choice and is_fused("loss", _objection_to_kernel(flat, overwrite)):
        return fused_cross_entropy(flat, targets, items, IGNORED)
    return _CrossEntropy.apply(flat, targets) / items


def _objection_to_kernel(logits: Tensor, overwrite: bool) -> str | None:
    if logits.device.type != "cuda":
        return f"it needs CUDA, not {logits.device.type}"
    if logits.dtype != torch.bfloat16:
        # In float16 a gradient that is divided by the number of labels would underflow.
        return f"it is for bfloat16, not {str(logits.dtype).removeprefix('torch.')}"
    if not overwrite:
        return "somebody else reads the logits"
    return absence_of_triton()
