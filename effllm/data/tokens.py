"""Packed token files: a corpus as one long row of token ids on disk, read through a memory map.

A directory of them holds, for each split,

    <split>.bin              token ids, little-endian uint16 or uint32; each document ends with the end-of-text token
    <split>.boundaries.bin   the end of each document as an offset into the ids, little-endian int64

and `tokens.json`: dtype, eos_token_id, vocab_size, and by split tokens, documents and utf8_bytes. A synthetic stream
has no text, so that eos_token_id and utf8_bytes are null, and `unscored` says why nothing behind it can be scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effllm.errors import UserError
from effllm.results.data import TokensIndex

BOUNDARY_DTYPE = np.dtype("<i8")


def id_dtype(vocab_size: int) -> np.dtype:
    """The narrowest type on disk that holds ids below `vocab_size`."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def tokens_file(directory: Path, split: str) -> Path:
    """Where the token ids of a split are."""
    return directory / f"{split}.bin"


def boundaries_file(directory: Path, split: str) -> Path:
    """Where the ends of a split's documents are."""
    return directory / f"{split}.boundaries.bin"


class PackedTokens:
    """One split of a tokens artifact. Pickling it (a data loader's workers do) carries its path, not its tokens."""

    def __init__(self, directory: Path, split: str, index: TokensIndex):
        part = index.splits[split]
        self.directory = directory
        self.split = split
        self.eos_token_id: int | None = index.eos_token_id
        self.vocab_size: int = index.vocab_size
        self.unscored: str | None = index.unscored
        """Why a loss on these tokens means nothing; None where it does."""
        self.utf8_bytes: int | None = part.utf8_bytes
        """Bytes of the split's text, end-of-text tokens not counted: what bits per byte are divided by."""
        self.ids = _map(tokens_file(directory, split), np.dtype(index.dtype), part.tokens)
        """All token ids, read-only memory map (tokens,)."""
        self.boundaries = _map(boundaries_file(directory, split), BOUNDARY_DTYPE, part.documents)
        """End offset of each document, its end-of-text token included, read-only memory map (documents,)."""

    @classmethod
    def open(cls, directory: str | Path, split: str) -> "PackedTokens":
        """Open the `split` ("train" or "held_out") of the tokens artifact in `directory`.

        `UserError` if the files are missing or their sizes disagree with `tokens.json`.
        """
        directory = Path(directory)
        index = TokensIndex.read(directory)
        if split not in index.splits:
            file = directory / index.FILE
            raise UserError(f"{file} has no split {split!r}; choose one of {', '.join(index.splits)}.")
        return cls(directory, split, index)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedTokens.open, (self.directory, self.split)

    def __len__(self) -> int:
        """Number of tokens, end-of-text tokens included."""
        return len(self.ids)

    def sequences(self, sequence_length: int) -> "Sequences":
        """The consecutive windows of `sequence_length` tokens, without the last partial one.

        `UserError` if the split is too short for one.
        """
        if sequence_length > len(self):
            raise UserError(
                f"{tokens_file(self.directory, self.split)} has {len(self)} tokens, too few for one sequence of "
                f"{sequence_length}; shorten the sequences or take more text."
            )
        return Sequences(self, sequence_length)

    def documents(self) -> Iterator[np.ndarray]:
        """Yield each document's token ids with its end-of-text token, int64 (tokens of the document,)."""
        start = 0
        for end in self.boundaries:
            yield self.ids[start:end].astype(np.int64)
            start = end


@dataclass(frozen=True)
class Sequences:
    """Non-overlapping windows of packed tokens, as a map-style data set. Documents run on across windows."""

    tokens: PackedTokens
    sequence_length: int

    def __len__(self) -> int:
        return len(self.tokens) // self.sequence_length

    def __getitem__(self, index: int) -> np.ndarray:
        """Window `index`: int64 (sequence_length,)."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        start = index * self.sequence_length
        return self.tokens.ids[start : start + self.sequence_length].astype(np.int64)


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    size = path.stat().st_size if path.is_file() else 0
    if size != length * dtype.itemsize or not length:
        raise UserError(
            f"{path} has {size} bytes where {length * dtype.itemsize} are expected: delete {path.parent} and run again "
            "to rebuild it."
        )
    return np.memmap(path, dtype=dtype, mode="r")
