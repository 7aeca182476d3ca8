"""Which documents of a source are near duplicates of each other: candidates by bands, then the exact similarity.

Three steps that run side by side, each with its result in a file that is there only once it is whole:

- `pair`, for each share of all bands: documents of one side that agree in a band are candidates, each with the first
  `_PARTNERS` before it in source order, so what is found of a document does not depend on those after it. Boilerplate
  that thousands share does not cost the square of their number: all are near to the first.
- `keep_grams`, for each unit: the grams of its documents that are in a pair.
- `check`, for each unit: the pairs of which the later document is in it and whose grams are as similar as asked.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from effllm.data import arrays
from effllm.data.drawing import Drawing
from effllm.data.runs import ROW_BITS, ROW_MASK, of_unit, share_of, shares
from effllm.data.sampling import Decision
from effllm.data.settings import NearDuplicates
from effllm.data.word_grams import word_grams
from effllm.data.writing import named_errors

_PARTNERS = 16
# Rows of a unit whose pairs are checked together.
_ROWS = 1 << 16
EDGE = np.dtype([("later", "<u8"), ("earlier", "<u8"), ("jaccard", "<f8")])


@dataclass(frozen=True)
class Pairing:
    """One share of the bands of `drawings`, of whose documents those count that are TRAIN or HELD_OUT in `decisions`.

    `directory` gets the pairs, each once and by the later document, uint64 (2, pairs) of the later and the earlier one,
    and, sorted, the documents that are in a pair.
    """

    drawings: tuple[Drawing, ...]
    decisions: tuple[Path, ...]
    share: int
    shares: int
    directory: Path


def pairings(drawings: Sequence[Drawing], decisions: Sequence[Path], directory: Path) -> list[Pairing]:
    """The tasks that find all candidates among `drawings`, results in `directory`."""
    count = shares(run for drawing in drawings for run in drawing.runs("bands"))
    return [Pairing(tuple(drawings), tuple(decisions), share, count, directory) for share in range(count)]


def pair(task: Pairing) -> None:
    """Find the candidates of one share, if they were not found yet."""
    # Written last.
    target = _pairs_file(task.directory, task.share)
    if not target.exists():
        keys: list[np.ndarray] = [np.zeros(0, np.uint64)]
        documents: list[np.ndarray] = [np.zeros(0, np.uint64)]
        for drawing, file in zip(task.drawings, task.decisions, strict=True):
            decisions = arrays.load(file)
            for run in drawing.runs("bands"):
                records = share_of(run, task.share, task.shares)
                found = decisions[records["row"]]
                records, found = (values[found <= Decision.HELD_OUT] for values in (records, found))
                # The lowest bit of a key is the side of the split: pairs do not cross it.
                side = (found == Decision.HELD_OUT).astype(np.uint64)
                keys.append((records["key"] | np.uint64(1)) ^ side)
                documents.append(records["row"].astype(np.uint64) | (np.uint64(drawing.number) << ROW_BITS))
        pairs = _pairs(np.concatenate(keys), np.concatenate(documents))
        arrays.save(_documents_file(task.directory, task.share), np.unique(pairs))
        arrays.save(target, pairs)


def _pairs(keys: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The pairs of `documents` with equal keys, later ones first, sorted: uint64 (2, pairs)."""
    order = np.lexsort((documents, keys))
    keys, documents = keys[order], documents[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
    start = np.repeat(first, np.diff(np.append(first, len(keys))))
    place = np.arange(len(keys)) - start
    found = [np.zeros((2, 0), np.uint64)]
    for partner in range(min(_PARTNERS, int(place.max(initial=0)))):
        later = np.flatnonzero(place > partner)
        found.append(np.stack([documents[later], documents[start[later] + partner]]))
    return _once(np.concatenate(found, axis=1))


def _once(pairs: np.ndarray) -> np.ndarray:
    """Each of the pairs once, sorted."""
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    is_new = np.ones(pairs.shape[1], dtype=bool)
    is_new[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    return pairs[:, is_new]


@dataclass(frozen=True)
class Checking:
    """A unit, and the directory of the candidates of all units, of so many shares; it gets the results too."""

    drawing: Drawing
    shares: int
    directory: Path
    settings: NearDuplicates


def keep_grams(task: Checking) -> None:
    """Write the grams of the documents of a unit that are in a pair."""
    number, directory = task.drawing.number, task.directory
    # Written last.
    if not _bounds_file(directory, number).exists():
        found = of_unit([_documents_file(directory, share) for share in range(task.shares)], number)
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
        wanted = np.zeros(len(task.drawing.decisions()), dtype=bool)
        wanted[rows] = True
        counts, temporary = [0], directory / f".grams-{number:05d}"
        with named_errors(temporary), open(temporary, "wb") as file:
            for batch in task.drawing.documents(wanted, ["text"]):
                for grams in word_grams(batch.column("text"), task.settings.words_per_gram):
                    file.write(grams.data)
                    counts.append(len(grams))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(_grams_file(directory, number))
        arrays.save(_rows_file(directory, number), rows)
        arrays.save(_bounds_file(directory, number), np.cumsum(counts))


def check(task: Checking) -> Path:
    """Compare the candidates whose later document is in a unit, once all grams are there; returns the file of `EDGE`.

    Near duplicates are in it by the later document, then by the earlier one.
    """
    target = task.directory / f"edges-{task.drawing.number:05d}.npy"
    if not target.exists():
        found = [np.zeros(0, EDGE)]
        first = task.drawing.number << int(ROW_BITS)
        for start in range(first, first + len(task.drawing.decisions()), _ROWS):
            files = (_pairs_file(task.directory, share) for share in range(task.shares))
            parts = [_pairs_between(file, start, start + _ROWS) for file in files]
            found.append(_near(_once(np.concatenate(parts, axis=1)), task))
        arrays.save(target, np.concatenate(found))
    return target


def _pairs_between(file: Path, first: int, last: int) -> np.ndarray:
    pairs = arrays.load(file)
    bounds = np.searchsorted(pairs[0], np.array([first, last], dtype=np.uint64))
    return np.array(pairs[:, bounds[0] : bounds[1]])


def _near(pairs: np.ndarray, task: Checking) -> np.ndarray:
    """Those of the pairs that are near duplicates."""
    own = _Grams.open(task.directory, task.drawing.number)
    # By the unit of the earlier document: one other unit's grams are open at a time.
    units = pairs[1] >> ROW_BITS
    found = [np.zeros(0, EDGE)]
    for unit in np.unique(units).tolist():
        other = own if unit == task.drawing.number else _other(task.directory, unit)
        later, earlier = pairs[:, units == unit]
        ours, theirs = own.places(later), other.places(earlier)
        sizes = np.sort(np.stack([own.sizes[ours], other.sizes[theirs]]), axis=0)
        jaccard = np.zeros(len(ours))
        # What no overlap could make similar enough is not read.
        for index in np.flatnonzero(sizes[0] / sizes[1] >= task.settings.minimum_jaccard).tolist():
            jaccard[index] = _jaccard(own.of(ours[index]), other.of(theirs[index]))
        near = jaccard >= task.settings.minimum_jaccard
        part = np.empty(int(near.sum()), dtype=EDGE)
        part["later"], part["earlier"], part["jaccard"] = later[near], earlier[near], jaccard[near]
        found.append(part)
    joined = np.concatenate(found)
    return joined[np.lexsort((joined["earlier"], joined["later"]))]


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The similarity of two sets, sorted and not empty."""
    places = np.searchsorted(one, other)
    places[places == len(one)] = 0
    common = int(np.count_nonzero(one[places] == other))
    return common / (len(one) + len(other) - common)


class _Grams:
    """The grams of the documents of a unit that are in a pair, mapped into memory."""

    def __init__(self, rows: np.ndarray, bounds: np.ndarray, grams: np.ndarray):
        self._rows = rows
        self._bounds = bounds
        self._grams = grams
        self.sizes = np.diff(bounds)

    @classmethod
    def open(cls, directory: Path, number: int) -> "_Grams":
        bounds = np.array(arrays.load(_bounds_file(directory, number)))
        grams = np.zeros(0, np.uint64)
        if bounds[-1]:
            grams = np.memmap(_grams_file(directory, number), dtype=np.uint64, mode="r")
        return cls(np.array(arrays.load(_rows_file(directory, number))), bounds, grams)

    def places(self, documents: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._rows, (documents & ROW_MASK).astype(np.int64))

    def of(self, place: int) -> np.ndarray:
        return self._grams[self._bounds[place] : self._bounds[place + 1]]


@lru_cache(maxsize=1)
def _other(directory: Path, number: int) -> _Grams:
    return _Grams.open(directory, number)


def _pairs_file(directory: Path, share: int) -> Path:
    return directory / f"pairs-{share:05d}.npy"


def _documents_file(directory: Path, share: int) -> Path:
    return directory / f"documents-{share:05d}.npy"


def _grams_file(directory: Path, number: int) -> Path:
    return directory / f"grams-{number:05d}.bin"


def _rows_file(directory: Path, number: int) -> Path:
    return directory / f"rows-{number:05d}.npy"


def _bounds_file(directory: Path, number: int) -> Path:
    return directory / f"bounds-{number:05d}.npy"
