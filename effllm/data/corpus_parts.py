"""The steps of sampling a corpus that run side by side: a unit of the source each, or a shard of the result.

Every step leaves its result in the scratch under a name that is there only once it is whole, and does nothing where it
finds it. So a killed run is taken up where it was, by any number of processes, and ends with the same bytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from effllm.data import arrays
from effllm.data.drawing import Drawing
from effllm.data.near_duplicates import HeldOutGrams, Observed
from effllm.data.sampling import Decision
from effllm.data.shards import ShardWriter

_OBSERVED = ("documents", "jaccard", "within", "in_training")


@dataclass(frozen=True)
class Part:
    """A unit that is part of the corpus, and the file of its documents' decisions: uint8, up to the token budget."""

    drawing: Drawing
    fates_file: Path

    @property
    def directory(self) -> Path:
        """Where the results of its steps are."""
        return self.fates_file.parent

    def rows(self, decision: Decision) -> np.ndarray:
        """Which of all documents of the unit have this decision: bool (documents,)."""
        found = np.zeros(len(self.drawing.decisions()), dtype=bool)
        decisions = arrays.load(self.fates_file)
        found[: len(decisions)] = decisions == decision
        return found

    def texts(self, decision: Decision) -> Iterator[pa.StringArray]:
        """Yield the texts of the documents with this decision, in order, some at a time."""
        for batch in self.drawing.documents(self.rows(decision), ["text"]):
            yield batch.column("text")


def index(part: Part) -> Path:
    """Index the held-out documents of a part; returns the directory for `HeldOutGrams.open`."""
    target = part.directory / "held_out"
    # Its entries are written last.
    if not (target / "entries.npy").exists():
        target.mkdir(exist_ok=True)
        grams = HeldOutGrams()
        for texts in part.texts(Decision.HELD_OUT):
            grams.add(texts)
        grams.save(target)
    return target


@lru_cache(maxsize=1)
def _index_in(directory: Path, written_ns: int) -> HeldOutGrams:
    return HeldOutGrams.open(directory)


def compare(task: tuple[Part, Path]) -> None:
    """Compare the training documents of a part with the index in a directory: which leave, what the others share."""
    part, directory = task
    target = part.directory / "leaving.npy"
    if target.exists():
        return
    grams = _index_in(directory, (directory / "entries.npy").stat().st_mtime_ns)
    grams.observed()
    leaving = [np.zeros(0, dtype=bool), *(grams.leaves(texts) for texts in part.texts(Decision.TRAIN))]
    observed = grams.observed()
    for name in _OBSERVED:
        arrays.save(part.directory / f"{name}.npy", getattr(observed, name))
    arrays.save(target, np.concatenate(leaving))


def compared(part: Part) -> tuple[np.ndarray, Observed]:
    """What `compare` found: which training documents leave, bool, and what those that stay have in common."""
    observed = [np.array(arrays.load(part.directory / f"{name}.npy")) for name in _OBSERVED]
    return np.array(arrays.load(part.directory / "leaving.npy")), Observed(*observed)


@dataclass(frozen=True)
class Shard:
    """The documents of a split that make one file: of each part that has some, their mask's file and their range.

    A range counts the documents that stay, from the part's first.
    """

    split: str
    number: int
    documents: int
    parts: tuple[tuple[Part, Path, int, int], ...]
    writing: Path
    written: Path


def shards(
    parts: Sequence[Part], split: str, stays: Sequence[Path], documents: int, writing: Path, written: Path
) -> list[Shard]:
    """Cut what stays of all parts (files of masks) into shards of so many documents."""
    ends = np.cumsum([0, *(int(np.count_nonzero(arrays.load(file))) for file in stays)])
    found = []
    for number in range(-(-int(ends[-1]) // documents)):
        first, last = number * documents, min((number + 1) * documents, int(ends[-1]))
        ranges = [
            (part, file, max(first, start) - start, min(last, end) - start)
            for part, file, start, end in zip(parts, stays, ends[:-1].tolist(), ends[1:].tolist(), strict=True)
            if start < last and end > first
        ]
        found.append(Shard(split, number, documents, tuple(ranges), writing, written))
    return found


def write(shard: Shard) -> Path:
    """Write a shard, if it was not written yet, and return its file."""
    target = shard.written / f"{shard.split}-{shard.number:05d}.parquet"
    if not target.exists():
        with closing(ShardWriter(shard.writing, shard.split, shard.documents, shard.number)) as writer:
            for part, file, first, last in shard.parts:
                wanted = np.array(arrays.load(file))
                rows = np.flatnonzero(wanted)
                wanted[rows[:first]] = wanted[rows[last:]] = False
                for batch in part.drawing.documents(wanted):
                    writer.write(batch)
        (shard.writing / target.name).replace(target)
    return target
