"""The word 5-grams of documents as 64-bit numbers: what near duplicates share.

A word is a run of letters and digits, in lower case where it is ASCII; every character of the scripts that put no
spaces between words (kana, Chinese, Hangul) is a word of its own. Punctuation, ASCII or typographic, and white space
separate. A document of one to four words has one gram, all of them; one without words has none. Numbers depend on the
text alone. Two different grams share one with a chance of 2^-64. Grams of other lengths are made alike.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa

WORDS = 5
# Bytes hashed at a time: eight bytes of numbers for each stay in the processor's cache.
_CHUNK_BYTES = 1 << 17


def word_grams(texts: pa.StringArray, words: int = WORDS) -> Iterator[np.ndarray]:
    """Yield the distinct grams of each text, sorted: uint64 (grams,)."""
    for grams, bounds in repeated_grams(texts, words):
        for start, end in pairwise(bounds.tolist()):
            yield distinct(grams[start:end])


def repeated_grams(texts: pa.StringArray, words: int = WORDS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the grams of some texts at a time, as often as they occur: uint64 (grams,), and bounds, int64 (texts + 1,).

    The grams of text `n` are those from `bounds[n]` to `bounds[n + 1]`.
    """
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    content = np.frombuffer(data if data is not None else b"", dtype=np.uint8)
    first = 0
    while first < len(texts):
        # At least one document, however long.
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _CHUNK_BYTES, side="right")) - 1)
        yield _grams(content[bounds[first] : bounds[last]], bounds[first : last + 1] - bounds[first], words)
        first = last


def distinct(grams: np.ndarray) -> np.ndarray:
    """The different ones among `grams`, sorted."""
    ordered = np.sort(grams)
    is_new = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    return ordered[is_new]


def _grams(content: np.ndarray, bounds: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    words, ends = _words(content, bounds)
    factors = _factors(size)
    counts = np.diff(ends)
    grams = np.zeros(max(len(words) - size + 1, 0), dtype=np.uint64)
    product = np.empty_like(grams)
    for position, factor in enumerate(factors):
        grams += np.multiply(words[position : position + len(grams)], factor, out=product)
    grams = mixed(grams)
    # Those that begin in one document and end in the next are none.
    is_whole = np.ones(len(words), dtype=bool)
    for offset in range(1, size):
        is_whole[np.maximum(ends[1:] - offset, ends[:-1])[counts > 0]] = False
    # A document that is shorter than a gram has one, at its first word.
    is_short = (counts > 0) & (counts < size)
    if not is_short.any():
        return grams[is_whole[: len(grams)]], np.append(0, np.cumsum(np.maximum(counts - size + 1, 0)))
    starts = ends[:-1][is_short]
    found = np.zeros(len(words), dtype=np.uint64)
    found[: len(grams)] = grams
    for start, count in zip(starts.tolist(), counts[is_short].tolist(), strict=True):
        found[start] = mixed(np.add.reduce(words[start : start + count] * factors[:count], keepdims=True))[0]
    is_whole[starts] = True
    numbers = np.where(is_short, 1, np.maximum(counts - size + 1, 0))
    return found[is_whole], np.append(0, np.cumsum(numbers))


def _words(content: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for each word, uint64 (words,), and which is the first of each document: int64 (documents + 1,)."""
    if not len(content):
        return np.zeros(0, dtype=np.uint64), np.zeros(len(bounds), dtype=np.int64)
    powers, inverses, room = _powers(len(content))
    # Always in the same pages: new ones for each chunk take longer than what is done with them.
    values = np.take(_VALUES, content, out=room, mode="clip")
    in_word = values != 0
    opens = None
    if content.max() >= 0x80:
        following = np.append(content[1:], np.uint8(0))
        for lead, second, length in _PUNCTUATION:
            at = np.flatnonzero((content == lead) & ((following == second) if second else True))
            for offset in range(length):
                in_word[np.minimum(at + offset, len(content) - 1)] = False
        values[~in_word] = 0
        opens = (content >= 0xE3) & (content <= 0xED)
    is_start = np.empty(len(content), dtype=bool)
    is_start[0] = True
    np.logical_not(in_word[:-1], out=is_start[1:])
    # A document's first word does not continue the last one of the document before.
    is_start[bounds[:-1][bounds[:-1] < len(content)]] = True
    if opens is not None:
        is_start |= opens
    is_start &= in_word
    starts = np.flatnonzero(is_start)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros(len(bounds), dtype=np.int64)
    # Polynomials modulo 2^64: a word's number does not depend on where it stands.
    values *= powers
    # Sums up to where the next word begins; what is before the first one is no word.
    until = np.cumsum(values, out=values)[np.append(starts[1:], len(content)) - 1]
    until[1:] -= until[:-1].copy()
    return mixed(until * inverses[starts]), np.searchsorted(starts, bounds)


def mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: a permutation of 64-bit numbers whose output bits are alike in every way."""
    shifted = values >> np.uint64(30)
    found = values ^ shifted
    for factor, shift in ((0xBF58476D1CE4E5B9, 27), (0x94D049BB133111EB, 31)):
        found *= np.uint64(factor)
        found ^= np.right_shift(found, np.uint64(shift), out=shifted)
    return found


@lru_cache
def _factors(words: int) -> np.ndarray:
    return mixed(np.arange(1, words + 1, dtype=np.uint64)) | np.uint64(1)


def _powers(length: int) -> tuple[np.ndarray, ...]:
    """Powers of an odd base and of its inverse modulo 2^64, and room for numbers: uint64 (length,)."""
    if length > len(_TABLES[0]):
        size = max(length, _CHUNK_BYTES)
        _TABLES[:] = [np.cumprod(np.full(size, factor, dtype=np.uint64)) for factor in (_BASE, pow(_BASE, -1, 1 << 64))]
        _TABLES.append(np.zeros(size, dtype=np.uint64))
    return tuple(table[:length] for table in _TABLES)


_BASE = 0x9E3779B97F4A7C15
_TABLES: list[np.ndarray] = [np.zeros(0, dtype=np.uint64)]
_LOWER = np.array([ord(chr(byte).lower()) if byte < 0x80 else byte for byte in range(256)], dtype=np.uint64)
_IN_WORD = np.array([byte >= 0x80 or chr(byte).isalnum() for byte in range(256)])
_VALUES = np.where(_IN_WORD, mixed(_LOWER + np.uint64(1 << 32)), np.uint64(0))
# Lead byte, second byte where it decides, length: Latin-1 signs, general punctuation, CJK punctuation.
_PUNCTUATION = ((0xC2, None, 2), (0xE2, 0x80, 3), (0xE3, 0x80, 3))
