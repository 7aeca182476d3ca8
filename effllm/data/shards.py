"""Documents on disk: the parquet shards of a corpus, written in a stream and read back in batches."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data.schema import SCHEMA
from effllm.data.writing import named_errors
from effllm.errors import UserError

# Documents per row group: the unit of memory of writer and reader, a few megabytes of web text.
_GROUP_DOCUMENTS = 2000


class ShardWriter:
    """Writes documents as `<split>-00000.parquet`, `<split>-00001.parquet`, ..., `shard_documents` in each.

    The first may have another number. The bytes depend on the documents and their order alone, not on how they were cut
    into batches. A thread compresses and writes one row group while the next one is collected; its errors are raised by
    the call after.
    """

    def __init__(self, directory: Path, split: str, shard_documents: int, first_shard: int = 0):
        self._directory = directory
        self._split = split
        self._shard_documents = shard_documents
        self._shards = first_shard
        self._path = directory
        self._room = 0
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_documents = 0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Append documents in `SCHEMA`."""
        while batch.num_rows:
            if self._writer is None:
                self._open()
            part = batch.slice(0, min(self._room, _GROUP_DOCUMENTS - self._pending_documents))
            batch = batch.slice(part.num_rows)
            self._pending.append(part)
            self._pending_documents += part.num_rows
            self._room -= part.num_rows
            if self._pending_documents == _GROUP_DOCUMENTS or not self._room:
                self._write_group()
            if not self._room:
                self._finish()

    def close(self) -> None:
        """Write what is pending and finish the last file."""
        try:
            self._finish()
        finally:
            self._thread.shutdown()

    def _finish(self) -> None:
        if self._writer is not None:
            self._write_group()
            self._wait()
            with named_errors(self._path):
                self._writer.close()
            self._writer = None

    def _open(self) -> None:
        self._path = self._directory / f"{self._split}-{self._shards:05d}.parquet"
        # Snappy costs half of what zstd does, and this stage is bound by its compression.
        # Few languages and dumps repeat, texts and ids never do: a dictionary of those is built only to be dropped.
        with named_errors(self._path):
            self._writer = pq.ParquetWriter(
                self._path, SCHEMA, compression="snappy", use_dictionary=["language", "dump"], write_statistics=False
            )
        self._shards += 1
        self._room = self._shard_documents

    def _write_group(self) -> None:
        if self._pending:
            # What is pending belongs to a file that is open.
            assert self._writer is not None
            # One chunk per column: page boundaries follow chunks, and must not follow the batches.
            table = pa.Table.from_batches(self._pending).combine_chunks()
            self._wait()
            self._writing = self._thread.submit(self._writer.write_table, table, row_group_size=_GROUP_DOCUMENTS)
            self._pending = []
            self._pending_documents = 0

    def _wait(self) -> None:
        if self._writing is not None:
            with named_errors(self._path):
                self._writing.result()
            self._writing = None


def shards_of(directory: Path, split: str) -> list[Path]:
    """The shards of one split of a corpus artifact in order; `UserError` if there is none."""
    shards = sorted(directory.glob(f"{split}-*.parquet"))
    if not shards:
        raise UserError(f"{directory} holds no {split}-*.parquet: delete the directory and run again to rebuild it.")
    return shards


def read_batches(
    directory: Path, split: str, columns: Sequence[str] = ("text",), batch_size: int = 1000
) -> Iterator[pa.RecordBatch]:
    """Yield the documents of one split ("train" or "held_out") of a corpus artifact in order.

    `directory` is the artifact's; `UserError` if it holds no shard of that split.
    """
    for shard in shards_of(directory, split):
        with pq.ParquetFile(shard) as file:
            yield from file.iter_batches(batch_size=batch_size, columns=list(columns))
