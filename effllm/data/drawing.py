"""The first look at a unit of a source: what becomes of each document by itself, and the digests of the texts.

A unit's directory gets, for each of its documents, `decisions.npy` (uint8, before duplicates are known), `tokens.npy`
(int64), `bytes.npy` (int64, of the text in UTF-8), and runs (`effllm.data.runs`) of the digests of the texts that
passed and, where near duplicates are sought, of their bands. The few documents on the held-out side are copied to
parquet, so that the unit is not read for them again; where it cannot be read again, all that passed are. `read.json` is
written last: without it nothing in the directory counts.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data import arrays
from effllm.data.minhash import band_records
from effllm.data.runs import Runs, run_files
from effllm.data.sampling import Decision, decisions, digests_of, held_out
from effllm.data.schema import SCHEMA
from effllm.data.settings import Corpus
from effllm.data.shards import ShardWriter
from effllm.data.sources import Unit
from effllm.hub.parquet import parquet_rows
from effllm.runtime.artifact import write_text

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
_MARK = "read.json"
_COPY = "copy"
_BATCH_DOCUMENTS = 1000


@dataclass(frozen=True)
class Drawing:
    """A unit of a source, its number, and the directory of what was drawn from it."""

    unit: Unit
    number: int
    directory: Path
    config: Corpus

    @property
    def is_done(self) -> bool:
        """Whether the unit was read to its end."""
        return (self.directory / _MARK).exists()

    def decisions(self) -> np.ndarray:
        """The `Decision` of each document by itself: uint8 (documents,)."""
        return arrays.load(self.directory / "decisions.npy")

    def tokens(self) -> np.ndarray:
        """Column token_count: int64 (documents,)."""
        return arrays.load(self.directory / "tokens.npy")

    def utf8_bytes(self) -> np.ndarray:
        """Length of each text: int64 (documents,)."""
        return arrays.load(self.directory / "bytes.npy")

    def runs(self, name: str = "digests") -> list[Path]:
        """Files of the digests (or bands) of the texts that passed, in source order."""
        return run_files(self.directory, name, self._mark()[name])

    def documents(self, wanted: np.ndarray, names: Sequence[str] = SCHEMA.names) -> Iterator[pa.RecordBatch]:
        """Yield the columns `names` of the documents where `wanted`, bool (documents,), is true, in order.

        Only documents that passed can be wanted.
        """
        copied = _copied(self.unit, self.decisions())
        from_copy = bool(copied[wanted].all())
        if from_copy:
            wanted = wanted[copied]
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return
        position = first = int(rows[0])
        for batch in self._rows(names, first, int(rows[-1]) + 1, from_copy):
            mask = wanted[position : position + batch.num_rows]
            position += batch.num_rows
            if mask.any():
                yield batch if mask.all() else batch.filter(pa.array(mask))

    def _rows(self, names: Sequence[str], start: int, stop: int, from_copy: bool) -> Iterator[pa.RecordBatch]:
        if from_copy:
            with pq.ParquetFile(self.directory / f"{_COPY}-00000.parquet") as file:
                yield from parquet_rows(file, names, start, stop, _BATCH_DOCUMENTS)
        else:
            yield from self.unit.batches(names, start, stop)

    def _mark(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.directory / _MARK).read_text())
        return found


def draw(drawing: Drawing) -> int:
    """Read a unit, if it was not read yet, and return the number of its documents."""
    if not drawing.is_done:
        shutil.rmtree(drawing.directory, ignore_errors=True)
        drawing.directory.mkdir(parents=True)
        _read(drawing)
        drawing.unit.release()
    return len(drawing.decisions())


def _read(drawing: Drawing) -> None:
    unit, config, directory = drawing.unit, drawing.config, drawing.directory
    found: dict[str, list[np.ndarray]] = {"decisions": [], "tokens": [], "bytes": []}
    digest_runs, band_runs = Runs(directory, "digests"), Runs(directory, "bands")
    rows = 0
    with closing(ShardWriter(directory, _COPY, 1 << 62)) as copy:
        for batch in unit.batches(SCHEMA.names):
            decision = decisions(batch, config)
            passed = np.flatnonzero(decision == Decision.TRAIN)
            digests = digests_of(batch.column("text"), passed)
            decision[passed[held_out(digests, config)]] = Decision.HELD_OUT
            digest_runs.add(_digest_records(digests, rows + passed))
            if config.near_duplicates is not None:
                texts = batch.column("text").filter(pa.array(decision <= Decision.HELD_OUT))
                band_runs.add(band_records(texts, rows + passed, config.near_duplicates))
            copied = _copied(unit, decision)
            copy.write(batch if copied.all() else batch.filter(pa.array(copied)))
            found["decisions"].append(decision)
            found["tokens"].append(batch.column("token_count").to_numpy())
            found["bytes"].append(_lengths(batch.column("text")))
            rows += batch.num_rows
    for name, parts in found.items():
        dtype = np.uint8 if name == "decisions" else np.int64
        arrays.save(directory / f"{name}.npy", np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype))
    mark = {"documents": rows, "digests": digest_runs.close(), "bands": band_runs.close()}
    write_text(directory / _MARK, json.dumps(mark))


def _digest_records(digests: list[bytes], rows: np.ndarray) -> np.ndarray:
    records = np.empty(len(digests), dtype=DIGEST)
    numbers = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
    records["high"], records["low"], records["row"] = numbers[:, 0], numbers[:, 1], rows
    return records


def _copied(unit: Unit, decisions: np.ndarray) -> np.ndarray:
    """Which documents of a unit are copied when it is read, bool, by their decisions then."""
    return decisions == Decision.HELD_OUT if unit.is_seekable else decisions <= Decision.HELD_OUT


def _lengths(texts: pa.StringArray) -> np.ndarray:
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.diff(offsets).astype(np.int64)
