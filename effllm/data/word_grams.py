"""The word 5-grams of documents as 64-bit numbers: what near duplicates share.

A word is a run of letters and digits, in lower case where it is ASCII; every character of the scripts that put no
spaces between words (kana, Chinese, Hangul) is a word of its own. Punctuation, ASCII or typographic, and white space
separate. A document of one to four words has one gram, all of them; one without words has none. Numbers depend on the
text alone. Two different grams share one with a chance of 2^-64.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

WORDS = 5
# Bytes hashed at a time: eight bytes of numbers for each stay in the processor's cache.
_CHUNK_BYTES = 1 << 18


def word_grams(texts: pa.StringArray) -> Iterator[np.ndarray]:
    """Yield the distinct grams of each text, sorted: uint64 (grams,)."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    content = np.frombuffer(data if data is not None else b"", dtype=np.uint8)
    first = 0
    while first < len(texts):
        # At least one document, however long.
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _CHUNK_BYTES, side="right")) - 1)
        part = content[bounds[first] : bounds[last]]
        yield from _grams(part, bounds[first : last + 1] - bounds[first])
        first = last


def _grams(content: np.ndarray, bounds: np.ndarray) -> Iterator[np.ndarray]:
    words, document = _words(content, bounds)
    ends = np.searchsorted(document, np.arange(len(bounds)), side="left")
    grams = np.zeros(max(len(words) - WORDS + 1, 0), dtype=np.uint64)
    for position, factor in enumerate(_FACTORS):
        grams += words[position : position + len(grams)] * factor
    grams = _mixed(grams)
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        if end - start >= WORDS:
            yield np.unique(grams[start : end - WORDS + 1])
        else:
            few = words[start:end]
            yield _mixed(np.add.reduce(few * _FACTORS[: len(few)], keepdims=True))[: min(len(few), 1)]


def _words(content: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for each word, uint64 (words,), and the index of its document."""
    if not len(content):
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    in_word = _IN_WORD[content]
    opens = np.zeros(len(content), dtype=bool)
    if content.max() >= 0x80:
        following = np.append(content[1:], np.uint8(0))
        for lead, second, length in _PUNCTUATION:
            at = np.flatnonzero((content == lead) & ((following == second) if second else True))
            for offset in range(length):
                in_word[np.minimum(at + offset, len(content) - 1)] = False
        opens = (content >= 0xE3) & (content <= 0xED) & in_word
    before = np.append(False, in_word[:-1])
    # A document's first word does not continue the last one of the document before.
    before[bounds[:-1][bounds[:-1] < len(content)]] = False
    starts = np.flatnonzero(in_word & (opens | ~before))
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    powers, inverses = _powers(len(content))
    # Polynomials modulo 2^64: a word's number does not depend on where it stands.
    values = np.where(in_word, _VALUES[content] * powers, np.uint64(0))
    words = _mixed(np.add.reduceat(values, starts) * inverses[starts])
    return words, np.searchsorted(bounds, starts, side="right") - 1


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: a permutation of 64-bit numbers whose output bits are alike in every way."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of an odd base and of its inverse modulo 2^64, uint64 (length or more,)."""
    if length > len(_TABLES[0]):
        size = max(length, _CHUNK_BYTES)
        _TABLES[:] = [np.cumprod(np.full(size, factor, dtype=np.uint64)) for factor in (_BASE, pow(_BASE, -1, 1 << 64))]
    return _TABLES[0][:length], _TABLES[1][:length]


_BASE = 0x9E3779B97F4A7C15
_TABLES: list[np.ndarray] = [np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)]
_FACTORS = _mixed(np.arange(1, WORDS + 1, dtype=np.uint64)) | np.uint64(1)
_LOWER = np.array([ord(chr(byte).lower()) if byte < 0x80 else byte for byte in range(256)], dtype=np.uint64)
_VALUES = _mixed(_LOWER + np.uint64(1 << 32))
_IN_WORD = np.array([byte >= 0x80 or chr(byte).isalnum() for byte in range(256)])
# Lead byte, second byte where it decides, length: Latin-1 signs, general punctuation, CJK punctuation.
_PUNCTUATION = ((0xC2, None, 2), (0xE2, 0x80, 3), (0xE3, 0x80, 3))
