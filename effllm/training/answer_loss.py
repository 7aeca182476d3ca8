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
from effllm.intervals import ratio_standard_error, sums_by_cluster
from effllm.runtime.progress import progress


@dataclass(frozen=True)
class AnswerLoss:
    """Mean negative log-likelihood in nats per answer token, and its standard error.

    The error takes prompts as independent draws: answers to one prompt are a cluster. None for one prompt.
    `by_sample` holds (sample id, nll in nats, answer tokens) of each sequence, in their order.
    """

    loss: float
    loss_stderr: float | None
    tokens: int
    samples: int
    by_sample: list[tuple[str, float, int]]


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
    scored: dict[int, tuple[float, int]] = {}
    for indices in progress(batches, len(batches), unit="batches", label=label):
        batch = collate([(index, sequences[index]) for index in indices])
        take_indices(batch)
        labels = batch.pop("labels")[:, 1:].to(device)
        with arithmetic:
            logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
        )
        sums, counts = losses.double().sum(dim=1).tolist(), (labels != IGNORED).sum(dim=1).tolist()
        scored.update(zip(indices, zip(sums, counts, strict=True), strict=True))
    model.train(was_training)
    by_sample = [(sequence.ids[0], *scored[index]) for index, sequence in enumerate(sequences)]
    ids, sample_sums, sample_counts = zip(*by_sample, strict=True)
    # "<prompt>#2" is the prompt again, with another answer.
    by_prompt = sums_by_cluster(sample_sums, sample_counts, [id.partition("#")[0] for id in ids])
    tokens = sum(sample_counts)
    return AnswerLoss(math.fsum(sample_sums) / tokens, ratio_standard_error(*by_prompt), tokens, len(ids), by_sample)
