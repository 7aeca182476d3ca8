"""Held-out loss, perplexity and bits per byte of a causal language model, and the losses of its documents."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from effllm.data.tokens import PackedTokens
from effllm.errors import CellFailure
from effllm.intervals import ratio_standard_error

# exp of more overflows a float.
_HIGHEST_LOSS = 709.0


@dataclass(frozen=True)
class HeldOut:
    """Mean negative log-likelihood in nats per token, its standard error, exp of it, and bits per UTF-8 byte.

    The error takes documents as independent draws; None for one document. `by_document` has the columns document (its
    place in the corpus's held-out part), nll (sum in nats) and tokens, a row per document with a scored token.
    """

    loss: float
    loss_stderr: float | None
    perplexity: float
    bits_per_byte: float
    tokens: int
    documents: int
    by_document: pa.Table


@torch.inference_mode()
def held_out_loss(model: PreTrainedModel, stream: PackedTokens, sequence_length: int, batch_size: int) -> HeldOut:
    """Score every token of `stream` but the first.

    Windows of `sequence_length` tokens overlap by one, so each token is predicted once, from the tokens before it
    in its window. End-of-text tokens count as tokens, and in the bits per byte.

    Raises `CellFailure` (nan) where the loss is no number, or its perplexity too large for one.
    """
    nll: np.ndarray = np.zeros(len(stream.boundaries))
    counts: np.ndarray = np.zeros(len(stream.boundaries), dtype=np.int64)
    for start, row in _token_losses(model, stream.ids, sequence_length, batch_size):
        positions = np.arange(start + 1, start + 1 + len(row))
        document = np.searchsorted(stream.boundaries, positions, side="right")
        first = document[0]
        part = np.bincount(document - first)
        counts[first : first + len(part)] += part
        nll[first : first + len(part)] += np.bincount(document - first, weights=row)
    documents = np.flatnonzero(counts)
    nll, counts = nll[documents], counts[documents]
    total, scored = math.fsum(nll), int(counts.sum())
    loss = total / scored
    # Only tokens that were drawn, which nobody scores, are no text.
    assert stream.utf8_bytes is not None
    _require_finite(loss)
    return HeldOut(
        loss,
        ratio_standard_error(nll.tolist(), counts.tolist()),
        math.exp(loss),
        total / math.log(2) / stream.utf8_bytes,
        scored,
        len(documents),
        pa.table({"document": documents, "nll": nll, "tokens": counts}),
    )


# Not inference_mode: what a model keeps from this pass, such as gathered shards or tables of positions, is used in
# training again.
@torch.no_grad()
def loss_on_the_way(
    model: PreTrainedModel, stream: PackedTokens, sequence_length: int, tokens: int | None
) -> tuple[float, int]:
    """The held-out loss of a model in training, in nats per token, over the first `tokens` of `stream`; and over how
    many.

    One window at a time: beside optimizer and gradients there may be no room for the logits of more. Draws no random
    numbers, so that training goes on as it would have.

    Raises `CellFailure` (nan) where the loss is no number.
    """
    rows = [row for _, row in _token_losses(model, stream.ids[:tokens], sequence_length, batch_size=1)]
    scored = sum(map(len, rows))
    loss = math.fsum(float(row.sum()) for row in rows) / scored
    _require_finite(loss)
    return loss, scored


def _token_losses(
    model: PreTrainedModel, tokens: np.ndarray, sequence_length: int, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """By window, where it starts and the losses of its tokens but the first in nats, float64."""
    was_training = model.training
    model.eval()
    ids = torch.from_numpy(tokens.astype(np.int64))
    starts = list(range(0, len(ids) - 1, sequence_length - 1))
    full = [start for start in starts if start + sequence_length <= len(ids)]
    batches = [full[i : i + batch_size] for i in range(0, len(full), batch_size)]
    # The last window may be a short one.
    batches += [[start] for start in starts[len(full) :]]
    for batch in batches:
        window = torch.stack([ids[start : start + sequence_length] for start in batch]).to(model.device)
        logits = model(window).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none")
        yield from zip(batch, losses.double().view(len(batch), -1).cpu().numpy(), strict=True)
    model.train(was_training)


def _require_finite(loss: float) -> None:
    if not loss < _HIGHEST_LOSS:
        raise CellFailure("nan", f"the held-out loss is {loss:g} nats per token")
