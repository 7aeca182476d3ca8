"""Records of all units of a source, put together by their leading bits in memory that does not grow with their number.

A unit writes its records to files, its *runs*, each sorted by the first field and at most `RUN_RECORDS` long. A *share*
of all records is those with the same leading bits, about `SHARE_RECORDS`: from each run it takes what lies side by side
there. Every share is looked at by itself.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from effllm.data import arrays

RUN_RECORDS = 1 << 20
SHARE_RECORDS = 1 << 20
_MOST_SHARES = 1 << 12

# A document's number: its unit, then its row. In this order documents are in source order.
ROW_BITS = np.uint64(40)
ROW_MASK = np.uint64((1 << 40) - 1)


class Runs:
    """Sorts records as they come into `<name>-00000.npy`, ... of a directory; records of equal keys stay in order."""

    def __init__(self, directory: Path, name: str):
        self._directory = directory
        self._name = name
        self._pending: list[np.ndarray] = []
        self._count = self._runs = 0

    def add(self, records: np.ndarray) -> None:
        """Take some records, in the order of their documents."""
        self._pending.append(records)
        self._count += len(records)
        if self._count >= RUN_RECORDS:
            self._write()

    def close(self) -> int:
        """Write what is pending and return the number of files."""
        if self._count:
            self._write()
        return self._runs

    def _write(self) -> None:
        run = np.concatenate(self._pending)
        order = np.argsort(_keys(run), kind="stable")
        arrays.save(run_files(self._directory, self._name, self._runs + 1)[-1], run[order])
        self._pending, self._count, self._runs = [], 0, self._runs + 1


def run_files(directory: Path, name: str, runs: int) -> list[Path]:
    """The files of the first `runs` runs, in source order."""
    return [directory / f"{name}-{run:05d}.npy" for run in range(runs)]


def shares(runs: Iterable[Path]) -> int:
    """Into how many shares the records of all these runs are cut: a power of two."""
    records = sum(len(arrays.load(run)) for run in runs)
    found = 1
    while found * SHARE_RECORDS < records and found < _MOST_SHARES:
        found *= 2
    return found


def share_of(run: Path, share: int, shares: int) -> np.ndarray:
    """The records of a run whose leading bits are `share`."""
    records = arrays.load(run)
    width = (1 << 64) // shares
    first, last = (_position(records, bound) for bound in (share * width, (share + 1) * width))
    return records[first:last].copy()


def of_unit(documents: Sequence[Path], number: int) -> Iterable[np.ndarray]:
    """Yield, for each file of sorted numbers of documents, the rows of unit `number`: int64 (rows,)."""
    bounds = np.array([number, number + 1], dtype=np.uint64) << ROW_BITS
    for path in documents:
        found = arrays.load(path)
        first, end = np.searchsorted(found, bounds)
        yield (found[first:end] & ROW_MASK).astype(np.int64)


def _keys(records: np.ndarray) -> np.ndarray:
    # The names of a structured type are not None.
    assert records.dtype.names is not None
    return records[records.dtype.names[0]].copy()


def _position(records: np.ndarray, bound: int) -> int:
    """The first record whose key is not below `bound`: a search that reads a page at a step."""
    low, high = 0, len(records)
    while low < high:
        middle = (low + high) // 2
        if int(records[middle][0]) < bound:
            low = middle + 1
        else:
            high = middle
    return low
