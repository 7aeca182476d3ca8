"""What is left of the beginning of a source once texts that were there before, and near duplicates, have left.

Exact duplicates leave first. Near duplicates are sought among what remains, each side of the split by itself: those on
two sides are the business of `effllm.data.near_duplicates`. What leaves for a document before it does not count for a
token budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effllm.data import arrays
from effllm.data.clusters import END, Clusters
from effllm.data.drawing import Drawing
from effllm.data.exact_duplicates import merge, merges
from effllm.data.near_pairs import Checking, check, keep_grams, pair, pairings
from effllm.data.runs import ROW_BITS, ROW_MASK, of_unit
from effllm.data.sampling import Decision
from effllm.data.settings import NearDuplicates
from effllm.data.workers import Workers
from effllm.results.data import NearDuplicateCounts, NearPair
from effllm.runtime.progress import progress

Cut = tuple[int, int]
"""Where a source ends: a unit's number, and how many of its documents are part of it."""
_SAMPLE_PAIRS = 20
_SAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class Duplicates:
    """Some units, the files of their documents' decisions without near duplicates, and those if they were sought."""

    drawings: Sequence[Drawing]
    files: Sequence[Path]
    clusters: Clusters | None

    def decisions(self, drawing: Drawing, cut: Cut | None) -> np.ndarray:
        """What becomes of a unit's documents before the sides are compared: uint8, up to the cut."""
        decisions = np.array(arrays.load(self.files[drawing.number]))
        if self.clusters is not None:
            decisions[self.clusters.leaving(drawing.number, _stop(cut))] = Decision.CLUSTERED
        return decisions[: cut[1]] if cut is not None and drawing.number == cut[0] else decisions

    def cut(self, budget: int) -> tuple[Cut | None, int]:
        """Where so many training tokens are reached, and how many there are until there or, without, in all units."""
        before = 0
        for drawing in self.drawings:
            counts = np.cumsum(self._tokens(drawing))
            met = np.flatnonzero(before + counts >= budget)
            if len(met):
                return (drawing.number, int(met[0]) + 1), before + int(counts[met[0]])
            before += int(counts[-1]) if len(counts) else 0
        return None, before

    def summary(self, cut: Cut | None) -> NearDuplicateCounts | None:
        """How many near duplicates there are, and some to look at."""
        if self.clusters is None:
            return None
        documents, clusters, pairs = self.clusters.counts(_stop(cut))
        sample = self.clusters.sample(_SAMPLE_PAIRS, _stop(cut))
        shown = self._shown(np.concatenate([sample["earlier"], sample["later"]]))
        return NearDuplicateCounts(
            documents=documents,
            clusters=clusters,
            pairs=pairs,
            sample=[
                NearPair(
                    jaccard=jaccard,
                    ids=[shown[earlier][0], shown[later][0]],
                    beginnings=[shown[earlier][1], shown[later][1]],
                )
                for later, earlier, jaccard in sample.tolist()
            ],
        )

    def _tokens(self, drawing: Drawing) -> np.ndarray:
        """By how much each document of a unit changes the number of training tokens: int64 (documents,)."""
        found = self._training_tokens(drawing)
        if self.clusters is not None:
            rows, left = self.clusters.left_at(drawing.number)
            units = left >> ROW_BITS
            for number in np.unique(units).tolist():
                tokens = self._training_tokens(self.drawings[number])
                part = units == number
                np.subtract.at(found, rows[part], tokens[(left[part] & ROW_MASK).astype(np.int64)])
        return found

    def _training_tokens(self, drawing: Drawing) -> np.ndarray:
        return np.where(arrays.load(self.files[drawing.number]) == Decision.TRAIN, drawing.tokens(), 0)

    def _shown(self, documents: np.ndarray) -> dict[int, tuple[str, str]]:
        """Id and beginning of the text of each document."""
        found = {}
        for drawing in self.drawings:
            in_unit = np.unique(documents[documents >> ROW_BITS == drawing.number])
            wanted = np.zeros(len(drawing.decisions()), dtype=bool)
            wanted[(in_unit & ROW_MASK).astype(np.int64)] = True
            rows = [row for batch in drawing.documents(wanted, ["text", "id"]) for row in batch.to_pylist()]
            for document, row in zip(in_unit.tolist(), rows, strict=True):
                found[document] = (row["id"], row["text"][:_SAMPLE_CHARACTERS])
        return found


def find_duplicates(
    drawings: Sequence[Drawing], near: NearDuplicates | None, scratch: Path, label: str, workers: Workers
) -> Duplicates:
    """Find the duplicates among units that were read, the first ones of a source; results are kept in `scratch`."""
    # Of the same units, whatever waves they were read in: a result of others does not count.
    directory = scratch / "duplicates" / f"of-{len(drawings)}"
    directory.mkdir(parents=True, exist_ok=True)
    merged = tuple(workers.map(merge, merges(drawings, directory)))
    files = list(workers.map(_decide, ((drawing, merged, directory) for drawing in drawings)))
    if near is None:
        return Duplicates(drawings, files, None)
    pairing = pairings(drawings, files, directory)
    for _ in progress(workers.map(pair, pairing), len(pairing), unit="shares", label=f"pairing {label}"):
        pass
    checking = [Checking(drawing, len(pairing), directory, near) for drawing in drawings]
    kept, checked = workers.map(keep_grams, checking), workers.map(check, checking)
    for _ in progress(kept, len(drawings), unit="files", label=f"reading pairs of {label}"):
        pass
    # The grams of all units are there: any may be compared.
    edges = list(progress(checked, len(drawings), unit="files", label=f"comparing pairs of {label}"))
    return Duplicates(drawings, files, Clusters(drawings, edges, near.keep == "longest"))


def _decide(task: tuple[Drawing, Sequence[Path], Path]) -> Path:
    """Write what becomes of a unit's documents before near duplicates are known: uint8 (documents,)."""
    drawing, merged, directory = task
    target = directory / f"decisions-{drawing.number:05d}.npy"
    if not target.exists():
        decisions = np.array(drawing.decisions())
        for rows in of_unit(merged, drawing.number):
            decisions[rows] = Decision.DUPLICATE
        arrays.save(target, decisions)
    return target


def _stop(cut: Cut | None) -> int:
    return END if cut is None else (cut[0] << int(ROW_BITS)) | cut[1]
