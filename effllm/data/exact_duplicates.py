"""Which texts of a source were there before: digests of all units, merged by their leading bits.

A share of all digests, those with the same leading bits, is merged by itself: memory holds one share, `SHARE_DIGESTS`
on average, whatever their number, and one file is open at a time. What a merge finds is a sorted list of documents,
numbered by unit and row, so that a unit takes its own from it by a search.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effllm.data import arrays
from effllm.data.drawing import DIGEST, Drawing

SHARE_DIGESTS = 1 << 20
_MOST_SHARES = 1 << 12
# A document's number: its unit, then its row.
_ROW_BITS = np.uint64(40)
_ROW_MASK = np.uint64((1 << 40) - 1)


@dataclass(frozen=True)
class Merge:
    """One share of the digests of `drawings`; `target` gets the documents whose texts were there before."""

    drawings: tuple[Drawing, ...]
    share: int
    shares: int
    target: Path


def merges(drawings: Sequence[Drawing], directory: Path) -> list[Merge]:
    """The merges that find all duplicates of `drawings`, results below `directory`."""
    digests = sum(len(arrays.load(run)) for drawing in drawings for run in drawing.runs())
    shares = 1
    while shares * SHARE_DIGESTS < digests and shares < _MOST_SHARES:
        shares *= 2
    return [Merge(tuple(drawings), share, shares, directory / f"{share:05d}.npy") for share in range(shares)]


def merge(task: Merge) -> Path:
    """Find the duplicates of one share, if they were not found yet, and return where they are."""
    if not task.target.exists():
        parts = [np.zeros(0, dtype=DIGEST)]
        for drawing in task.drawings:
            for run in drawing.runs():
                part = _share(arrays.load(run), task.share, task.shares).copy()
                part["row"] |= np.uint64(drawing.number) << _ROW_BITS
                parts.append(part)
        arrays.save(task.target, np.sort(_later(np.concatenate(parts))))
    return task.target


def rows_of(drawing: Drawing, merged: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yield, for each merge, the rows of a unit whose texts were there before: int64 (rows,)."""
    bounds = np.array([drawing.number, drawing.number + 1], dtype=np.uint64) << _ROW_BITS
    for path in merged:
        found = arrays.load(path)
        first, end = np.searchsorted(found, bounds)
        yield (found[first:end] & _ROW_MASK).astype(np.int64)


def _share(run: np.ndarray, share: int, shares: int) -> np.ndarray:
    """The records of `run` whose leading bits are `share`."""
    width = (1 << 64) // shares
    first, last = (_position(run, bound) for bound in (share * width, (share + 1) * width))
    return run[first:last]


def _position(run: np.ndarray, bound: int) -> int:
    """The first record whose digest is not below `bound`: a search that reads a page at a step."""
    low, high = 0, len(run)
    while low < high:
        middle = (low + high) // 2
        if int(run[middle]["high"]) < bound:
            low = middle + 1
        else:
            high = middle
    return low


def _later(records: np.ndarray) -> np.ndarray:
    """The documents, uint64, of all records but the first of each digest. Records come in source order."""
    order = np.argsort(records["high"].copy(), kind="stable")
    high, low, rows = (records[name][order] for name in ("high", "low", "row"))
    repeats = np.zeros(len(rows), dtype=bool)
    repeats[1:] = high[1:] == high[:-1]
    for index in np.flatnonzero(repeats[1:] & (low[1:] != low[:-1])) + 1:
        # Two digests that share their first half: told apart one by one, as often as there are such halves.
        first = int(np.searchsorted(high, high[index]))
        seen: set[int] = set()
        for position in range(first, int(np.searchsorted(high, high[index], side="right"))):
            repeats[position] = int(low[position]) in seen
            seen.add(int(low[position]))
    found: np.ndarray = rows[repeats]
    return found
