"""Loss of a causal language model over the answers of held-out conversations."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from effllm.data.instructions.batches import take_indices
from effllm.data.instructions.encoding import IGNORED, TrainingSequence
from effllm.progress import progress
from effllm.training.held_out import ratio_standard_error


@dataclass(frozen=True)
class AnswerLoss:
    """Mean negative log-likelihood in nats per answer token, and its standard error over samples (None for one)."""

    loss: float
    loss_stderr: float | None
    tokens: int
    samples: int


@torch.inference_mode()
def answer_loss(
    model: nn.Module,
    sequences: Sequence[TrainingSequence],
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    batch_size: int,
    dtype: str,
    label: str,
) -> AnswerLoss:
    """Score the tokens whose labels count, each sequence a sample of its own, on the model's device.

    `dtype` is the arithmetic of the training, float32 or bfloat16 (autocast). `label` names the progress.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    # Like lengths together: little padding. The result does not depend on the order.
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    arithmetic = torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
    sums: list[float] = []
    counts: list[int] = []
    for indices in progress(batches, len(batches), unit="batches", label=label):
        batch = collate([(index, sequences[index]) for index in indices])
        take_indices(batch)
        labels = batch.pop("labels")[:, 1:].to(device)
        with arithmetic:
            logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
        )
        sums += losses.double().sum(dim=1).tolist()
        counts += (labels != IGNORED).sum(dim=1).tolist()
    model.train(was_training)
    return AnswerLoss(math.fsum(sums) / sum(counts), ratio_standard_error(sums, counts), sum(counts), len(counts))
