"""Which documents of a source enter a corpus, and on which side of its split.

A document's fate depends on its content and on what came before it: filters first, then the draw by seed and id,
then its text, of which the first in source order stays. Hashes are xxh3_128 over UTF-8 bytes, which are the same in
every process, on every machine and in every version of the library.
"""

import sqlite3
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from effllm.errors import UserError
from effllm.study.data import Corpus

# Part of the definition of the held-out split: another value would let held-out texts into older training sets.
SPLIT_SALT = 0x68656C645F6F7574
_CACHE_KIB = 65_536
_QUERY_DIGESTS = 1000


class Fate(IntEnum):
    """What became of a document; the dropped ones by the first reason that applies.

    `fates` knows all but the last two, which `effllm.data.near_duplicates` decides once everything was drawn.
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


class SeenTexts:
    """The digests of all texts so far, in memory that does not grow with their number.

    The latest `recent_limit` (about 100 bytes each) are kept in memory; when they are full they move, sorted, into
    a database file whose cache is bounded.
    """

    def __init__(self, path: Path, recent_limit: int = 1 << 18):
        self._path = path
        self._recent: set[bytes] = set()
        self._recent_limit = recent_limit
        self._has_stored = False
        path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        # The file dies with this run, so nothing is spent on surviving a crash.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._connection.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._connection.execute("BEGIN")

    def add(self, digests: list[bytes]) -> np.ndarray:
        """Remember the digests in order; bool (digests,), True for each that was not there before.

        `UserError` if the file cannot be written (a full disk).
        """
        try:
            return self._add(digests)
        except sqlite3.OperationalError as error:
            raise UserError(f"{self._path}: {error}; make room or access there, and run again.") from None

    def close(self) -> None:
        """Delete the file."""
        self._connection.close()
        self._path.unlink()

    def _add(self, digests: list[bytes]) -> np.ndarray:
        stored = self._stored(digests)
        is_new = np.empty(len(digests), dtype=bool)
        for index, digest in enumerate(digests):
            is_new[index] = digest not in self._recent and digest not in stored
            self._recent.add(digest)
        if len(self._recent) >= self._recent_limit:
            rows = ((digest,) for digest in sorted(self._recent))
            self._connection.executemany("INSERT OR IGNORE INTO seen VALUES (?)", rows)
            self._recent.clear()
            self._has_stored = True
        return is_new

    def _stored(self, digests: list[bytes]) -> set[bytes]:
        """Those of the digests that are in the database."""
        found: set[bytes] = set()
        if self._has_stored:
            # In the order of the tree, neighbours share their pages.
            ordered = sorted(digests)
            for start in range(0, len(ordered), _QUERY_DIGESTS):
                part = ordered[start : start + _QUERY_DIGESTS]
                query = f"SELECT digest FROM seen WHERE digest IN ({','.join('?' * len(part))})"
                found.update(digest for (digest,) in self._connection.execute(query, part))
        return found


def fates(batch: pa.RecordBatch, config: Corpus, seen: SeenTexts) -> np.ndarray:
    """The `Fate` of each document of `batch`, uint8 (documents,); adds the texts that passed the filters to `seen`."""
    fate = np.full(batch.num_rows, Fate.TRAIN, dtype=np.uint8)
    if config.languages is not None:
        fate[~_mask(pc.is_in(batch.column("language"), pa.array(config.languages, pa.string())))] = Fate.LANGUAGE
    if config.minimum_int_score > 0:
        passes = _mask(pc.greater_equal(batch.column("int_score"), config.minimum_int_score))
        fate[~passes & (fate == Fate.TRAIN)] = Fate.INT_SCORE
    lengths = pc.binary_length(batch.column("text")).to_numpy()
    fate[(lengths == 0) & (fate == Fate.TRAIN)] = Fate.EMPTY
    if config.sample_fraction < 1:
        rows = np.flatnonzero(fate == Fate.TRAIN)
        draws = _leading_bits(_digests(batch.column("id"), rows, prefix=f"{config.seed}:".encode()))
        fate[rows[draws >= _threshold(config.sample_fraction)]] = Fate.NOT_SAMPLED
    rows = np.flatnonzero(fate == Fate.TRAIN)
    digests = _digests(batch.column("text"), rows)
    fate[rows[_leading_bits(digests) < _threshold(config.held_out_fraction)]] = Fate.HELD_OUT
    fate[rows[~seen.add(digests)]] = Fate.DUPLICATE
    return fate


def until_budget(batch: pa.RecordBatch, fate: np.ndarray, tokens: int) -> int:
    """Number of leading documents of `batch` that it takes to reach `tokens` more training tokens (all, if fewer)."""
    counts = np.where(fate == Fate.TRAIN, batch.column("token_count").to_numpy(), 0)
    return min(int(np.searchsorted(np.cumsum(counts), tokens)) + 1, batch.num_rows)


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
