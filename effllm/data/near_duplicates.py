"""The overlap of a training part with a held-out part, by word 5-grams, and who has to leave because of it.

Only the held-out part is indexed, and the training part passes by once: memory grows with neither the number of
training documents nor, beyond `MAXIMUM_GRAMS`, that of held-out ones. From there on the index holds a share of all
grams that is drawn by the grams' own hash (Broder's modulo sketch), and every figure is an estimate from that share.

A training document leaves that has a Jaccard similarity of at least `NEAR_DUPLICATE` with a held-out document, or
`CONTAINED` of whose grams are in one. A held-out document leaves `CONTAINED` of whose grams are in one training
document that stays. What remains has no near duplicate on the other side, so no group of near duplicates lies on both.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from effllm.data import arrays
from effllm.data.word_grams import WORDS, distinct, repeated_grams, word_grams
from effllm.errors import UserError
from effllm.results.data import Overlap

NEAR_DUPLICATE = 0.5
CONTAINED = 0.8
# Eight bytes each, in one array that is sorted in place.
MAXIMUM_GRAMS = 1 << 22
# An entry is one number: the leading 40 bits of a gram, then its document. With the most entries that there are, a
# gram that is not among them is taken for one of them with a chance of 4e-6 (and twice that for every halving).
_DOCUMENT_BITS = np.uint64(24)
_DOCUMENT_MASK = np.uint64((1 << 24) - 1)
# Of the documents that share one gram, the first so many are looked at: boilerplate must not cost the square of its
# copies, and what is near to all copies is near to the first.
_SHARERS = 1000
# Entries looked at together: some whole documents', or one's.
_SHARED_AT_ONCE = 1 << 18
_FILTER_BITS = 23


@dataclass(frozen=True)
class Observed:
    """What some training documents have in common with held-out ones: what `HeldOutGrams.observed` took down.

    `documents`, int64, are the held-out ones that share a gram with one that stayed, `jaccard` the highest of each;
    `within`, int64, those within one of them; `in_training`, packed bits, the entries that occur in one.
    """

    documents: np.ndarray
    jaccard: np.ndarray
    within: np.ndarray
    in_training: np.ndarray


class HeldOutGrams:
    """Add all held-out documents, pass all training documents through `leaves`, then ask for the rest.

    Held-out documents may be added to several indexes, which `join` makes one of, and training documents pass several
    copies of it, whose `observed` are noted in one: the result is the same.
    """

    def __init__(self, maximum_grams: int = MAXIMUM_GRAMS):
        # Pages that are never written to take no memory.
        self._entries: np.ndarray = np.empty(maximum_grams, dtype=np.uint64)
        self._count = 0
        self._documents = 0
        self._halvings = 0
        self._utf8_bytes: list[np.ndarray] = []
        self._is_complete = False
        self._asked = 0

    def add(self, texts: pa.StringArray) -> None:
        """Index held-out documents, in order; `UserError` if they are more than an index holds."""
        self._utf8_bytes.append(_utf8_bytes(texts))
        for grams in word_grams(texts):
            if self._documents > int(_DOCUMENT_MASK):
                raise _too_many(self._documents)
            part = self._sampled(grams)
            while self._count + len(part) > len(self._entries):
                self._halve()
                part = self._sampled(part)
            part = (part & ~_DOCUMENT_MASK) | np.uint64(self._documents)
            self._entries[self._count : self._count + len(part)] = part
            self._count += len(part)
            self._documents += 1

    def join(self, other: "HeldOutGrams") -> None:
        """Add the documents of another index, after those of this one; `UserError` as for `add`."""
        if self._documents + other._documents > int(_DOCUMENT_MASK) + 1:
            raise _too_many(self._documents + other._documents)
        while self._halvings < other._halvings:
            self._halve()
        entries = other._entries[: other._count]
        part = entries[entries <= self._highest()] + np.uint64(self._documents)
        while self._count + len(part) > len(self._entries):
            self._halve()
            part = part[part <= self._highest()]
        self._entries[self._count : self._count + len(part)] = part
        self._count += len(part)
        self._documents += other._documents
        self._utf8_bytes += other._utf8_bytes

    def save(self, directory: Path) -> None:
        """Write the index to files of `directory`, for `open`; only once, when all documents were added."""
        self._complete()
        arrays.save(directory / "documents.npy", np.concatenate([np.zeros(0, np.int32), *self._utf8_bytes]))
        arrays.save(directory / "halvings.npy", np.array([self._halvings]))
        arrays.save(directory / "entries.npy", self._entries)

    @classmethod
    def open(cls, directory: Path) -> "HeldOutGrams":
        """The index that was saved in `directory`, its entries mapped into memory and shared by processes."""
        index = cls(0)
        index._entries = arrays.load(directory / "entries.npy")
        index._utf8_bytes = [np.array(arrays.load(directory / "documents.npy"))]
        index._count, index._documents = len(index._entries), len(index._utf8_bytes[0])
        index._halvings = int(arrays.load(directory / "halvings.npy")[0])
        return index

    def observed(self) -> Observed:
        """What was taken down since the last call, which begins anew."""
        self._complete()
        documents = np.flatnonzero(self._highest_jaccard)
        found = Observed(
            documents,
            self._highest_jaccard[documents],
            np.flatnonzero(self._within_one),
            np.packbits(self._in_training),
        )
        self._forget()
        return found

    def note(self, observed: Observed) -> None:
        """Take down what another copy of this index observed."""
        self._complete()
        found = self._highest_jaccard[observed.documents]
        self._highest_jaccard[observed.documents] = np.maximum(found, observed.jaccard)
        self._within_one[observed.within] = True
        self._in_training |= np.unpackbits(observed.in_training, count=self._count).astype(bool)

    def leaves(self, texts: pa.StringArray) -> np.ndarray:
        """Whether each training document has to leave: bool (texts,). What stays counts as training from then on."""
        self._complete()
        leaving = [np.zeros(0, dtype=bool), *(self._leaving(*some) for some in repeated_grams(texts))]
        return np.concatenate(leaving)

    def which_contained(self, documents: int) -> np.ndarray:
        """Whether each of the next held-out documents lies within a training document that stayed: bool (documents,).

        For the documents that were added, in the same order, after all training documents.
        """
        self._complete()
        first, self._asked = self._asked, self._asked + documents
        return self._within_one[first : self._asked]

    def overlap(self) -> Overlap:
        """What the documents that remain have in common; None without a gram.

        A gram counts as covered if it occurs somewhere in training, in any number of its documents.
        """
        self._complete()
        stays = ~self._within_one
        common = np.bincount(self._document_of(self._entries[self._in_training]), minlength=self._documents)
        coverage = np.divide(common, self._sizes, out=np.zeros(self._documents), where=self._sizes > 0)
        lengths = np.concatenate([np.zeros(0, dtype=np.int32), *self._utf8_bytes]).astype(np.int64)
        grams, utf8_bytes = int(self._sizes[stays].sum()), int(lengths[stays].sum())
        covered = {share: stays & (coverage >= share) for share in (0.5, CONTAINED)}
        return Overlap(
            words_per_gram=WORDS,
            gram_share_compared=0.5**self._halvings,
            near_duplicate_jaccard=NEAR_DUPLICATE,
            contained_share=CONTAINED,
            maximum_jaccard=float(self._highest_jaccard[stays].max()) if grams else None,
            held_out_gram_share_in_training=int(common[stays].sum()) / grams if grams else None,
            held_out_byte_share_covered={
                str(share): int(lengths[which].sum()) / utf8_bytes if grams else None
                for share, which in covered.items()
            },
            held_out_documents_covered={str(share): int(which.sum()) for share, which in covered.items()},
        )

    def _halve(self) -> None:
        self._halvings += 1
        kept = self._entries[: self._count]
        kept = kept[kept <= self._highest()]
        self._count = len(kept)
        self._entries[: self._count] = kept

    def _highest(self) -> np.uint64:
        """The highest gram that is compared: each halving leaves the lower half of all numbers."""
        return np.uint64((1 << (64 - self._halvings)) - 1)

    def _sampled(self, grams: np.ndarray) -> np.ndarray:
        """Those of the sorted grams that are compared."""
        return grams[: np.searchsorted(grams, self._highest(), side="right")]

    def _complete(self) -> None:
        """Sort what was added, once."""
        if self._is_complete:
            return
        self._is_complete = True
        self._entries = self._entries[: self._count]
        # One that was opened is sorted, and not to be written to.
        if self._entries.flags.writeable:
            self._entries.sort()
        # By the leading bits of a gram, and by the last ones that an entry has, whether some held-out gram has them:
        # what spares nearly all searches.
        bits = min(_FILTER_BITS, math.ceil(math.log2(self._count + 1)) + 4)
        self._shift, self._last_bits = np.uint64(64 - self._halvings - bits), np.uint64((1 << bits) - 1)
        self._is_possible, self._is_likely = np.zeros((2, 1 << bits), dtype=bool)
        self._is_possible[self._entries >> self._shift] = True
        self._is_likely[(self._entries >> _DOCUMENT_BITS) & self._last_bits] = True
        self._sizes = np.bincount(self._document_of(self._entries), minlength=self._documents)
        self._forget()

    def _forget(self) -> None:
        self._in_training = np.zeros(self._count, dtype=bool)
        self._within_one = np.zeros(self._documents, dtype=bool)
        self._highest_jaccard = np.zeros(self._documents)

    def _leaving(self, grams: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Which of some training documents leave, bool; document `n` has the grams from `bounds[n]` to the next."""
        leaving = np.zeros(len(bounds) - 1, dtype=bool)
        # What is above the highest is beyond the table too, and counts as its last entry.
        at = np.flatnonzero(self._is_possible.take((grams >> self._shift).view(np.int64), mode="clip"))
        found = grams[at]
        is_likely = self._is_likely[(found >> _DOCUMENT_BITS) & self._last_bits] & (found <= self._highest())
        at, found = at[is_likely], found[is_likely]
        # Searches in order are near each other in memory.
        order = np.argsort(found)
        at, possible = at[order], found[order] & ~_DOCUMENT_MASK
        first = np.searchsorted(self._entries, possible)
        is_held_out = first < self._count
        is_held_out[is_held_out] = self._entries[first[is_held_out]] & ~_DOCUMENT_MASK == possible[is_held_out]
        at, first, possible = at[is_held_out], first[is_held_out], possible[is_held_out]
        end = np.searchsorted(self._entries, possible | _DOCUMENT_MASK, side="right")
        # A gram counts once in a document, however often it occurs.
        owners = np.searchsorted(bounds, at, side="right") - 1
        order = np.argsort(owners, kind="stable")
        at, owners, first, end = (values[order] for values in (at, owners, first, end))
        is_new = np.ones(len(at), dtype=bool)
        is_new[1:] = (owners[1:] != owners[:-1]) | (grams[at[1:]] != grams[at[:-1]])
        owners, first, end = (values[is_new] for values in (owners, first, end))
        documents = np.unique(owners)
        sizes = np.zeros(len(leaving), dtype=np.int64)
        for document in documents.tolist():
            sizes[document] = len(self._sampled(distinct(grams[bounds[document] : bounds[document + 1]])))
        cuts = np.append(np.searchsorted(owners, documents), len(owners))
        sharers = np.append(0, np.cumsum(end - first))[cuts]
        done = 0
        while done < len(documents):
            last = max(done + 1, int(np.searchsorted(sharers, sharers[done] + _SHARED_AT_ONCE, side="right")) - 1)
            part = slice(cuts[done], cuts[last])
            self._compare(owners[part], first[part], end[part], sizes, leaving)
            done = last
        return leaving

    def _compare(
        self, owners: np.ndarray, first: np.ndarray, end: np.ndarray, sizes: np.ndarray, leaving: np.ndarray
    ) -> None:
        """Mark in `leaving` which of some training documents leave; what the others share is noted.

        `first` and `end` are the ranges of entries of the held-out grams among those of document `owners`, of which
        there are `sizes` in each document.
        """
        most = np.minimum(end, first + _SHARERS)
        pairs = np.repeat(owners << int(_DOCUMENT_BITS), most - first)
        pairs, common = np.unique(pairs | self._document_of(self._entries[_joined(first, most)]), return_counts=True)
        owner, document = pairs >> int(_DOCUMENT_BITS), pairs & int(_DOCUMENT_MASK)
        own, held_out = sizes[owner], self._sizes[document]
        jaccard = common / (own + held_out - common)
        leaving[owner[(jaccard >= NEAR_DUPLICATE) | (common >= CONTAINED * own)]] = True
        stays = ~leaving[owner]
        np.maximum.at(self._highest_jaccard, document[stays], jaccard[stays])
        self._within_one[document[stays & (common >= CONTAINED * held_out)]] = True
        kept = ~leaving[owners]
        self._in_training[_joined(first[kept], end[kept])] = True

    @staticmethod
    def _document_of(entries: np.ndarray) -> np.ndarray:
        return (entries & _DOCUMENT_MASK).astype(np.int64)


def _too_many(documents: int) -> UserError:
    return UserError(f"more than {documents} documents are held out; lower held_out_fraction: a loss needs far fewer.")


def _joined(first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The numbers of all ranges [first, end), one range after the other."""
    counts = end - first
    return np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def _utf8_bytes(texts: pa.StringArray) -> np.ndarray:
    return np.diff(np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1])
