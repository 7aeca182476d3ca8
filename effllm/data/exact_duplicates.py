"""Which texts of a source were there before: digests of all units, share by share.

What the merge of a share finds is a sorted list of documents, so that a unit takes its own from it by a search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effllm.data import arrays
from effllm.data.drawing import DIGEST, Drawing
from effllm.data.runs import ROW_BITS, share_of, shares


@dataclass(frozen=True)
class Merge:
    """One share of the digests of `drawings`; `target` gets the documents whose texts were there before."""

    drawings: tuple[Drawing, ...]
    share: int
    shares: int
    target: Path


def merges(drawings: Sequence[Drawing], directory: Path) -> list[Merge]:
    """The merges that find all duplicates of `drawings`, results below `directory`."""
    count = shares(run for drawing in drawings for run in drawing.runs())
    return [Merge(tuple(drawings), share, count, directory / f"{share:05d}.npy") for share in range(count)]


def merge(task: Merge) -> Path:
    """Find the duplicates of one share, if they were not found yet, and return where they are."""
    if not task.target.exists():
        parts = [np.zeros(0, dtype=DIGEST)]
        for drawing in task.drawings:
            for run in drawing.runs():
                part = share_of(run, task.share, task.shares)
                part["row"] |= np.uint64(drawing.number) << ROW_BITS
                parts.append(part)
        arrays.save(task.target, np.sort(_later(np.concatenate(parts))))
    return task.target


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
