"""The stage that says how hard each window of a token stream is, by which training orders them.

in:  tokens; corpus, for measures of its documents; model, a pretraining run, for its loss
out: order.json and difficulty.npy, float32 (windows,): one for each whole window of the training split, NaN where
     nothing in it has a value

Pieces of the corpus are measured side by side, on every core of the job; the bytes are the same for any number of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from effllm.data import arrays
from effllm.data.order.settings import DocumentMeasure, LossMeasure, Order
from effllm.data.order.windows import window_means
from effllm.data.shards import shards_of
from effllm.data.tokens import PackedTokens
from effllm.data.workers import Workers, job_threads
from effllm.errors import UserError
from effllm.hub.parquet import parquet_rows
from effllm.results.data import OrderSummary
from effllm.runtime.progress import Progress
from effllm.runtime.stage import Job, main

DIFFICULTY = "difficulty.npy"
_PIECE_DOCUMENTS = 20_000
_BATCH_DOCUMENTS = 256
_SPLIT = "train"
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def build(job: Job) -> None:
    """Measure the training split of the token stream in `job.inputs`."""
    order = job.config(Order)
    stream = PackedTokens.open(job.inputs["tokens"].directory, _SPLIT)
    windows = stream.sequences(order.sequence_length)
    documents: np.ndarray | None = None
    if isinstance(order.by, LossMeasure):
        from effllm.data.order.losses import window_losses

        model = job.inputs["model"].directory / "model"
        difficulty = window_losses(model, windows, order.by.batch_size, job.scratch)
    else:
        ends = np.asarray(stream.boundaries)
        documents = (
            _measured(job, order.by, len(ends)) if isinstance(order.by, DocumentMeasure) else np.diff(ends, prepend=0)
        )
        difficulty = window_means(documents.astype(np.float64), ends, order.sequence_length)
    known = difficulty[np.isfinite(difficulty)]
    if not len(known):
        raise UserError(
            f"orders.{job.id}: no training document of {job.inputs['tokens'].manifest.id} has a value of "
            f"{order.by.kind!r}: order by another measure, or take a corpus with such values."
        )
    arrays.save(job.output / DIFFICULTY, difficulty.astype("<f4"))
    job.write(
        OrderSummary(
            sequence_length=order.sequence_length,
            windows=len(difficulty),
            windows_without_value=len(difficulty) - len(known),
            documents=None if documents is None else len(documents),
            documents_without_value=None if documents is None else int(np.count_nonzero(~np.isfinite(documents))),
            quantiles={f"{share:g}": float(np.quantile(known, share)) for share in _QUANTILES},
        )
    )


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a shard of a corpus, and the file for what is found of them."""

    shard: Path
    start: int
    stop: int
    values: Path


def measure_piece(measure: DocumentMeasure, piece: Piece) -> Piece:
    """Measure the documents of a piece, if that was not done yet: float64 (documents,), NaN for None."""
    if not piece.values.exists():
        with pq.ParquetFile(piece.shard) as file:
            batches = parquet_rows(file, [measure.column], piece.start, piece.stop, _BATCH_DOCUMENTS)
            found = [measure.of(value) for batch in batches for value in batch.column(measure.column).to_pylist()]
        arrays.save(piece.values, np.array(found, dtype=np.float64))
    return piece


def _measured(job: Job, measure: DocumentMeasure, documents: int) -> np.ndarray:
    """The measure of every training document of the corpus, in the order of the stream."""
    pieces = list(_pieces(job.inputs["corpus"].directory, job.scratch))
    parts = []
    with (
        Workers(min(job_threads(), len(pieces))) as workers,
        Progress(documents, unit="documents", label=f"measuring {_SPLIT}") as bar,
    ):
        for piece in workers.map(partial(measure_piece, measure), pieces):
            parts.append(arrays.load(piece.values))
            bar.update(len(parts[-1]))
    values = np.concatenate(parts)
    if len(values) != documents:
        raise UserError(
            f"corpus {job.inputs['corpus'].manifest.id} has {len(values)} training documents, its token stream "
            f"{documents}: delete {job.inputs['tokens'].directory} and run again."
        )
    return values


def _pieces(corpus: Path, scratch: Path) -> Iterator[Piece]:
    number = 0
    for shard in shards_of(corpus, _SPLIT):
        rows = pq.read_metadata(shard).num_rows
        for start in range(0, rows, _PIECE_DOCUMENTS):
            yield Piece(shard, start, min(start + _PIECE_DOCUMENTS, rows), scratch / f"values-{number:06d}.npy")
            number += 1


if __name__ == "__main__":
    from effllm.stages.order import OrderStage

    main(OrderStage(), build)
