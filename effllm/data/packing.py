"""The stage that encodes a corpus into memory-mapped token files (`effllm.data.tokens` has their layout).

in:  corpus and tokenizer; nothing for a synthetic stream
out: tokens.json and the token files

Pieces of the corpus are encoded side by side, on every core of the job, and joined in their order: the bytes are the
same for any number of cores, and a killed run goes on at the first piece that it lacks.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from effllm.data import arrays
from effllm.data.settings import SyntheticStream, TokenStream
from effllm.data.shards import shards_of
from effllm.data.synthetic import write_stream
from effllm.data.tokenizer import load as load_tokenizer
from effllm.data.tokens import BOUNDARY_DTYPE, boundaries_file, id_dtype, tokens_file
from effllm.data.workers import Workers, job_threads
from effllm.data.writing import named_errors
from effllm.errors import UserError
from effllm.hub.parquet import parquet_rows
from effllm.results.data import CorpusSummary, DocumentCounts, TokensIndex
from effllm.runtime.artifact import write_text
from effllm.runtime.progress import Progress
from effllm.runtime.stage import Job, main

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Documents that one process encodes at a time and leaves as one file: what a killed run may have to encode again.
_PIECE_DOCUMENTS = 20_000
_BATCH_DOCUMENTS = 256


def build(job: Job) -> None:
    """Encode both splits of the corpus artifact with the tokenizer artifact, or draw a synthetic stream."""
    stream = TypeAdapter(TokenStream).validate_python(job.spec["config"])
    if isinstance(stream, SyntheticStream):
        write_stream(job, stream)
        return
    corpus = job.inputs["corpus"]
    tokenizer = load_tokenizer(job.inputs["tokenizer"].directory)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {job.inputs['tokenizer'].manifest.id} has no end-of-text token to put between documents; "
            "choose a tokenizer that has an eos_token."
        )
    splits = CorpusSummary.read(corpus.directory).splits
    # Some tokenizers on the hub skip ids, so their number of tokens does not bound the ids.
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    dtype = id_dtype(vocab_size)
    packed = {}
    for split, counts in splits.items():
        pieces = pieces_of(corpus.directory, split, job.inputs["tokenizer"].directory, dtype, job.scratch)
        with Workers(min(job_threads(), len(pieces))) as workers:
            packed[split] = pack(pieces, split, dtype, job.output, job.scratch, counts.documents, workers)
    job.write(TokensIndex(dtype=dtype.str, eos_token_id=tokenizer.eos_token_id, vocab_size=vocab_size, splits=packed))


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a shard of a corpus, and where their ids go before they are one file with the others."""

    shard: Path
    start: int
    stop: int
    tokenizer: Path
    dtype: str
    ids: Path

    @property
    def lengths(self) -> Path:
        """File of the tokens of each document, written last: uint32 (documents,)."""
        return self.ids.with_suffix(".lengths.npy")

    @property
    def utf8_bytes(self) -> Path:
        """File of the bytes of text, int64 (1,)."""
        return self.ids.with_suffix(".bytes.npy")


def pieces_of(corpus: Path, split: str, tokenizer: Path, dtype: np.dtype, scratch: Path) -> list[Piece]:
    """Cut a split of a corpus into pieces; `tokenizer` is the directory of its artifact."""
    found: list[Piece] = []
    for shard in shards_of(corpus, split):
        rows = pq.read_metadata(shard).num_rows
        for start in range(0, rows, _PIECE_DOCUMENTS):
            ids = scratch / f"{split}-{len(found):06d}.npy"
            found.append(Piece(shard, start, min(start + _PIECE_DOCUMENTS, rows), tokenizer, dtype.str, ids))
    return found


def encode(piece: Piece) -> Piece:
    """Encode a piece, if that was not done yet.

    A document that spells a special token out holds its characters: only the packing itself writes the token.
    """
    if piece.lengths.exists():
        return piece
    tokenizer = _tokenizer_in(piece.tokenizer)
    ids: list[np.ndarray] = [np.zeros(0, np.dtype(piece.dtype))]
    lengths: list[int] = []
    utf8_bytes = 0
    with pq.ParquetFile(piece.shard) as file:
        for batch in parquet_rows(file, ["text"], piece.start, piece.stop, _BATCH_DOCUMENTS):
            texts = batch.column("text")
            for encoded in _encoded(tokenizer, texts.to_pylist()):
                ids.append(np.array([*encoded, tokenizer.eos_token_id], dtype=np.dtype(piece.dtype)))
                lengths.append(len(ids[-1]))
            utf8_bytes += pc.sum(pc.binary_length(texts)).as_py()
    arrays.save(piece.ids, np.concatenate(ids))
    arrays.save(piece.utf8_bytes, np.array([utf8_bytes]))
    arrays.save(piece.lengths, np.array(lengths, dtype=np.uint32))
    return piece


@lru_cache(maxsize=1)
def _tokenizer_in(directory: Path) -> "PreTrainedTokenizerBase":
    return load_tokenizer(directory)


def _encoded(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> Iterator[list[int]]:
    """Ids of each text, special tokens neither added nor recognized."""
    if not tokenizer.is_fast:
        settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        yield from tokenizer(texts, **settings)["input_ids"]
        return
    # What Transformers does too, without the masks, offsets and lists of its result.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
        yield encoding.ids


def pack(
    pieces: list[Piece], split: str, dtype: np.dtype, output: Path, scratch: Path, total: int, workers: Workers
) -> DocumentCounts:
    """Encode the pieces of one split of `total` documents into one file; returns its tokens, documents and bytes.

    A killed run is taken up at the first piece that is not part of the file; beside the file, `scratch` holds the
    pieces that are ahead of it.
    """
    mark, counts = scratch / f"{split}.json", {"pieces": 0, "tokens": 0, "documents": 0, "utf8_bytes": 0}
    if mark.exists():
        counts = json.loads(mark.read_text())
    ids_file, ends_file = tokens_file(scratch, split), boundaries_file(scratch, split)
    with (
        named_errors(ids_file),
        _opened(ids_file, counts["tokens"] * dtype.itemsize) as ids_stream,
        _opened(ends_file, counts["documents"] * BOUNDARY_DTYPE.itemsize) as ends_stream,
        Progress(total, unit="documents", label=f"encoding {split}") as bar,
    ):
        bar.update(counts["documents"])
        for piece in workers.map(encode, pieces[counts["pieces"] :]):
            lengths = arrays.load(piece.lengths)
            ends = counts["tokens"] + np.cumsum(lengths, dtype=BOUNDARY_DTYPE)
            for stream, part in ((ids_stream, arrays.load(piece.ids)), (ends_stream, ends)):
                stream.write(np.ascontiguousarray(part).data)
                stream.flush()
                os.fsync(stream.fileno())
            counts = {
                "pieces": counts["pieces"] + 1,
                "tokens": int(ends[-1]),
                "documents": counts["documents"] + len(lengths),
                "utf8_bytes": counts["utf8_bytes"] + int(arrays.load(piece.utf8_bytes)[0]),
            }
            write_text(mark, json.dumps(counts))
            for file in (piece.ids, piece.utf8_bytes, piece.lengths):
                file.unlink()
            bar.update(len(lengths))
    for file in (ids_file, ends_file):
        os.link(file, output / file.name)
    return DocumentCounts(**{name: count for name, count in counts.items() if name != "pieces"})


def _opened(path: Path, size: int) -> BinaryIO:
    """A file of which the first `size` bytes count, to write on from there."""
    path.touch()
    stream = path.open("r+b")
    stream.truncate(size)
    stream.seek(size)
    return stream


if __name__ == "__main__":
    from effllm.stages.tokens import TokensStage

    main(TokensStage(), build)
