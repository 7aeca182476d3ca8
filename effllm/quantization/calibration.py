"""The sequences on which a quantizer measures activations."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import xxhash
from transformers import PreTrainedTokenizerBase

from effllm.data.synthetic import SPLIT
from effllm.data.tokenizer import begin_of_text
from effllm.data.tokens import PackedTokens
from effllm.errors import UserError
from effllm.models.loading import load_tokenizer
from effllm.quantization.precision import Calibration

Sequence = dict[str, list[int]]
"""`input_ids` and `attention_mask`, as gptqmodel takes them."""


def calibration_sequences(data: Path, model: Path, calibration: Calibration) -> list[Sequence]:
    """`calibration.samples` sequences of exactly `sequence_length` tokens.

    `data` is the artifact of the corpus, which is read with the tokenizer in `model`, or of the token stream.
    """
    if calibration.tokens is not None:
        return stream_sequences(PackedTokens.open(data, SPLIT), calibration)
    return text_sequences(data, load_tokenizer(model), calibration)


def text_sequences(corpus: Path, tokenizer: PreTrainedTokenizerBase, calibration: Calibration) -> list[Sequence]:
    """Sequences of the corpus's training part.

    Documents are taken in the order of a hash of the seed and their id. Each begins as the tokenizer begins a text,
    with one begin-of-text token or none, and ends with an end-of-text token.
    """
    length, needed = calibration.sequence_length, calibration.samples
    table = pq.ParquetDataset(sorted(corpus.glob("train-*.parquet"))).read(columns=["id", "text"])
    documents = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    ordered = sorted(documents, key=lambda item: xxhash.xxh3_128_digest(f"{calibration.seed}\n{item[0]}".encode()))
    begin, ids = begin_of_text(tokenizer), []
    for _, text in ordered:
        ids += [*begin, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= needed * length:
            break
    else:
        there = len(ids) // length
        remedy = "lower it" if there else f"it has {len(ids)} tokens: shorten sequence_length"
        raise UserError(
            f"calibration.samples: the training text has {there} sequences of {length} tokens, not {needed}; {remedy}, "
            f"or enlarge corpora.{calibration.corpus}."
        )
    return [_sequence(ids[start : start + length]) for start in range(0, needed * length, length)]


def stream_sequences(stream: PackedTokens, calibration: Calibration) -> list[Sequence]:
    """Sequences of a token stream, each at most once, in an order drawn from the seed (PCG64)."""
    windows = stream.sequences(calibration.sequence_length)
    order = np.random.Generator(np.random.PCG64(calibration.seed)).permutation(len(windows))
    return [_sequence(windows[int(index)].tolist()) for index in order[: calibration.samples]]


def _sequence(ids: list[int]) -> Sequence:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}
