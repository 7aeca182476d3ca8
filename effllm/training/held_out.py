"""Held-out loss, perplexity and bits per byte of a causal language model."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from effllm.data.tokens import PackedTokens
from effllm.errors import CellFailure

# exp of more overflows a float.
_HIGHEST_LOSS = 709.0


@dataclass(frozen=True)
class HeldOut:
    """Mean negative log-likelihood in nats per token, its standard error, exp of it, and bits per UTF-8 byte.

    The error takes windows as independent draws; None for one window.
    """

    loss: float
    loss_stderr: float | None
    perplexity: float
    bits_per_byte: float
    tokens: int


@torch.inference_mode()
def held_out_loss(model: PreTrainedModel, stream: PackedTokens, sequence_length: int, batch_size: int) -> HeldOut:
    """Score every token of `stream` but the first.

    Windows of `sequence_length` tokens overlap by one, so each token is predicted once, from the tokens before it
    in its window. End-of-text tokens count as tokens, and in the bits per byte.

    Raises `CellFailure` (nan) where the loss is no number, or its perplexity too large for one.
    """
    was_training = model.training
    model.eval()
    ids = torch.from_numpy(stream.ids.astype(np.int64))
    stride = sequence_length - 1
    sums, counts = [], []
    starts = list(range(0, len(ids) - 1, stride))
    full = [start for start in starts if start + sequence_length <= len(ids)]
    batches = [full[i : i + batch_size] for i in range(0, len(full), batch_size)]
    # The last window may be a short one.
    batches += [[start] for start in starts[len(full) :]]
    for batch in batches:
        window = torch.stack([ids[start : start + sequence_length] for start in batch]).to(model.device)
        logits = model(window).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none")
        sums += losses.double().view(len(batch), -1).sum(dim=1).tolist()
        counts += [losses.numel() // len(batch)] * len(batch)
    model.train(was_training)
    total, scored = math.fsum(sums), sum(counts)
    loss = total / scored
    if not loss < _HIGHEST_LOSS:
        raise CellFailure("nan", f"the held-out loss is {loss:g} nats per token")
    bits_per_byte = total / math.log(2) / stream.utf8_bytes
    return HeldOut(loss, ratio_standard_error(sums, counts), math.exp(loss), bits_per_byte, scored)


def ratio_standard_error(sums: list[float], counts: list[int]) -> float | None:
    """Standard error of sum(sums) / sum(counts) (Cochran, Sampling Techniques, 6.8); None for one draw."""
    if len(sums) < 2:
        return None
    loss = math.fsum(sums) / sum(counts)
    spread = math.fsum((total - loss * count) ** 2 for total, count in zip(sums, counts, strict=True))
    return math.sqrt(spread * len(sums) / (len(sums) - 1)) / sum(counts)
