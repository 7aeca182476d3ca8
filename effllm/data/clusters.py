"""Clusters of near duplicates, over all units of a source: which documents leave for another, and from where on.

Pairs are joined in the order of their later documents (union-find), and of two clusters that become one, one of the two
documents that stood for them leaves. So what leaves is known for every beginning of the source at once: a document
leaves from the one on that joined it, and nothing that comes later brings it back. A token budget counts what is left,
whatever was read beyond its end.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from effllm.data import arrays
from effllm.data.drawing import Drawing
from effllm.data.runs import ROW_BITS, ROW_MASK

END = (1 << 64) - 1
"""The number of no document, after all others."""
_PAIRS_AT_ONCE = 1 << 16


class Clusters:
    """The clusters of some units: `files` hold the near duplicates of each, `near_pairs.EDGE` in source order.

    The first document of a cluster stays, or with `longest` the one of most tokens, of several the first. Memory holds
    56 bytes for each document that has a near duplicate, and the pairs of one unit.
    """

    def __init__(self, drawings: Sequence[Drawing], files: Sequence[Path], longest: bool):
        self._files = files
        self._documents: np.ndarray = np.zeros(0, np.uint64)
        for file in files:
            pairs = arrays.load(file)
            self._documents = np.unique(np.concatenate([self._documents, pairs["later"], pairs["earlier"]]))
        sizes = np.zeros(len(self._documents), np.int64)
        for drawing in drawings if longest else ():
            part, rows = self._in_unit(drawing.number)
            sizes[part] = drawing.tokens()[rows]
        self._leaves_at = self._join(array("q", sizes.tobytes()))
        order = np.argsort(self._leaves_at, kind="stable")
        self._times, self._leaving = self._leaves_at[order], self._documents[order]

    def leaving(self, number: int, stop: int = END) -> np.ndarray:
        """The rows of a unit that leave if the source ends before document `stop`: int64 (rows,)."""
        part, rows = self._in_unit(number)
        return rows[self._leaves_at[part] < np.uint64(stop)]

    def left_at(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a unit at which documents leave, and the documents: int64 and uint64 (documents,)."""
        part = slice(*np.searchsorted(self._times, _bounds(number)).tolist())
        return (self._times[part] & ROW_MASK).astype(np.int64), self._leaving[part]

    def counts(self, stop: int = END) -> tuple[int, int, int]:
        """Near duplicates if the source ends before document `stop`: documents, clusters, pairs."""
        is_in = np.zeros(len(self._documents), dtype=bool)
        count = 0
        for pairs in self._pairs(stop):
            count += len(pairs)
            for name in ("later", "earlier"):
                is_in[np.searchsorted(self._documents, pairs[name])] = True
        documents = int(np.count_nonzero(is_in))
        # All documents of a cluster leave but one.
        return documents, documents - int(np.count_nonzero(self._leaves_at < np.uint64(stop))), count

    def sample(self, size: int, stop: int = END) -> np.ndarray:
        """At most `size` of the pairs, evenly from all of them in source order."""
        count = self.counts(stop)[2]
        chosen = np.unique(np.arange(size) * count // size) if count else np.zeros(0, np.int64)
        first, found = 0, []
        for pairs in self._pairs(stop):
            found.append(pairs[chosen[(chosen >= first) & (chosen < first + len(pairs))] - first])
            first += len(pairs)
        return np.concatenate(found)

    def _pairs(self, stop: int) -> Iterator[np.ndarray]:
        for file in self._files:
            pairs = np.array(arrays.load(file))
            yield pairs[pairs["later"] < np.uint64(stop)]

    def _join(self, sizes: "array[int]") -> np.ndarray:
        """For each document the one at which it leaves, `END` for what stays: uint64 (documents,)."""
        root = array("q", range(len(sizes)))
        stands = array("q", range(len(sizes)))
        leaves_at = np.full(len(sizes), END, dtype=np.uint64)

        def root_of(member: int) -> int:
            while root[member] != member:
                root[member] = member = root[root[member]]
            return member

        for pairs in self._pairs(END):
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                part = pairs[start : start + _PAIRS_AT_ONCE]
                places = (np.searchsorted(self._documents, part[name]).tolist() for name in ("later", "earlier"))
                for later, earlier in zip(*places, strict=True):
                    one, other = root_of(earlier), root_of(later)
                    if one != other:
                        stays, leaves = stands[one], stands[other]
                        if (sizes[stays], -stays) < (sizes[leaves], -leaves):
                            stays, leaves = leaves, stays
                        leaves_at[leaves] = self._documents[later]
                        root[other], stands[one] = one, stays
        return leaves_at

    def _in_unit(self, number: int) -> tuple[slice, np.ndarray]:
        """Where the documents of a unit are among all, and their rows."""
        part = slice(*np.searchsorted(self._documents, _bounds(number)).tolist())
        return part, (self._documents[part] & ROW_MASK).astype(np.int64)


def _bounds(number: int) -> np.ndarray:
    return np.array([number, number + 1], dtype=np.uint64) << ROW_BITS
