"""Which documents of a source enter a corpus, and on which side of its split.

A document's decision depends on its content and on what came before it: filters first, then the draw by seed and id,
then its text, of which the first in source order stays. Hashes are xxh3_128 over UTF-8 bytes, which are the same in
every process, on every machine and in every version of the library.
"""

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from effllm.data.settings import Corpus, Filters

# Part of the definition of the held-out split: another value would let held-out texts into older training sets.
SPLIT_SALT = 0x68656C645F6F7574


class Decision(IntEnum):
    """What became of a document; the dropped ones by the first reason that applies.

    A document by itself decides all but those about duplicates; `effllm.data.exact_duplicates`, `effllm.data.clusters`
    and `effllm.data.near_duplicates` decide those, in this order, once everything was drawn.
    """

    TRAIN = 0
    HELD_OUT = 1
    LANGUAGE = 2
    INT_SCORE = 3
    EMPTY = 4
    NOT_SAMPLED = 5
    DUPLICATE = 6
    NEAR_DUPLICATE = 7
    CONTAINED = 8
    LANGUAGE_SCORE = 9
    SCORE = 10
    LENGTH = 11
    REPETITION = 12
    CLUSTERED = 13


def dropping_decisions(config: Corpus) -> list[Decision]:
    """Why documents may be left out of a corpus; of what came later only what is asked for."""
    filters = config.filters
    found = [decision for decision in Decision if Decision.HELD_OUT < decision <= Decision.CONTAINED]
    if filters is not None:
        is_set = {
            Decision.LANGUAGE_SCORE: filters.minimum_language_score,
            Decision.SCORE: filters.minimum_score,
            Decision.LENGTH: filters.minimum_document_tokens or filters.maximum_document_tokens,
            Decision.REPETITION: filters.maximum_repeated_line_share,
        }
        found += [decision for decision, value in is_set.items() if value is not None]
    if config.near_duplicates is not None:
        found.append(Decision.CLUSTERED)
    return found


def decisions(batch: pa.RecordBatch, config: Corpus) -> np.ndarray:
    """What the documents of `batch` are by themselves, whatever others there are: `Decision`, uint8 (documents,)."""
    decision = np.full(batch.num_rows, Decision.TRAIN, dtype=np.uint8)
    if config.languages is not None:
        decision[~_mask(pc.is_in(batch.column("language"), pa.array(config.languages, pa.string())))] = (
            Decision.LANGUAGE
        )
    if config.minimum_int_score > 0:
        passes = _mask(pc.greater_equal(batch.column("int_score"), config.minimum_int_score))
        decision[~passes & (decision == Decision.TRAIN)] = Decision.INT_SCORE
    lengths = pc.binary_length(batch.column("text")).to_numpy()
    decision[(lengths == 0) & (decision == Decision.TRAIN)] = Decision.EMPTY
    if config.filters is not None:
        for reason, fails in _failures(batch, config.filters):
            decision[fails & (decision == Decision.TRAIN)] = reason
    if config.sample_fraction < 1:
        rows = np.flatnonzero(decision == Decision.TRAIN)
        draws = _leading_bits(_digests(batch.column("id"), rows, prefix=f"{config.seed}:".encode()))
        decision[rows[draws >= _threshold(config.sample_fraction)]] = Decision.NOT_SAMPLED
    return decision


def _failures(batch: pa.RecordBatch, filters: Filters) -> Iterator[tuple[Decision, np.ndarray]]:
    """For each filter that is set, why and which documents it removes: bool (documents,)."""
    if filters.minimum_language_score is not None:
        passes = pc.greater_equal(batch.column("language_score"), filters.minimum_language_score)
        yield Decision.LANGUAGE_SCORE, ~_mask(passes)
    if filters.minimum_score is not None:
        yield Decision.SCORE, ~_mask(pc.greater_equal(batch.column("score"), filters.minimum_score))
    tokens = batch.column("token_count").to_numpy()
    if filters.minimum_document_tokens is not None:
        yield Decision.LENGTH, tokens < filters.minimum_document_tokens
    if filters.maximum_document_tokens is not None:
        yield Decision.LENGTH, tokens > filters.maximum_document_tokens
    if filters.maximum_repeated_line_share is not None:
        shares = np.array([repeated_line_share(text) for text in batch.column("text").to_pylist()])
        yield Decision.REPETITION, shares > filters.maximum_repeated_line_share


def repeated_line_share(text: str) -> float:
    """Share of the lines of `text` that an earlier line was already; blank ones do not count, 0 without any."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def held_out(digests: list[bytes], config: Corpus) -> np.ndarray:
    """Whether the texts with these digests are held out: bool (texts,)."""
    chosen: np.ndarray = _leading_bits(digests) < _threshold(config.held_out_fraction)
    return chosen


def digests_of(texts: pa.StringArray, rows: np.ndarray) -> list[bytes]:
    """xxh3_128 of the texts at `rows`: what decides the split, and tells duplicates."""
    return _digests(texts, rows)


def _digests(column: pa.Array, rows: np.ndarray, prefix: bytes = b"") -> list[bytes]:
    """xxh3_128 of the strings of `column` at `rows`, read in place."""
    texts = _views(column, rows)
    if prefix:
        return [xxhash.xxh3_128_digest(prefix + bytes(text)) for text in texts]
    return [xxhash.xxh3_128_digest(text, SPLIT_SALT) for text in texts]


def _views(column: pa.Array, rows: np.ndarray) -> Iterator[memoryview]:
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    view = memoryview(data if data is not None else b"")
    return (view[a:b] for a, b in zip(bounds[rows].tolist(), bounds[rows + 1].tolist(), strict=True))


def _leading_bits(digests: list[bytes]) -> np.ndarray:
    """The first 64 bits of each digest as a number, uint64 (digests,)."""
    return np.frombuffer(b"".join(digests), dtype=">u8")[::2]


def _threshold(fraction: float) -> np.uint64:
    return np.uint64(int(fraction * 2**64))


def _mask(values: pa.BooleanArray) -> np.ndarray:
    """Null (not measured) passes no filter."""
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)
