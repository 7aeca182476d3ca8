"""Conversations on disk: `train.parquet` and `held_out.parquet` of an instructions artifact."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data.writing import named_errors
from effllm.errors import UserError

Role = Literal["system", "user", "assistant"]
SPLITS = ("train", "held_out")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)
_GROUP_SAMPLES = 1000


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `content` has text and no space around it."""

    role: Role
    content: str


@dataclass(frozen=True)
class Sample:
    """A conversation: at most one system message first, then user and assistant in turn, the assistant last."""

    id: str
    messages: tuple[Message, ...]

    def chat(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [asdict(message) for message in self.messages]


class SampleWriter:
    """Writes samples to `<directory>/<split>.parquet`; the bytes depend on the samples and their order alone."""

    def __init__(self, directory: Path, split: str):
        self.count = 0
        self._path = directory / f"{split}.parquet"
        self._pending: list[dict[str, object]] = []
        with named_errors(self._path):
            self._writer = pq.ParquetWriter(self._path, SCHEMA, compression="zstd", write_statistics=False)

    def write(self, sample: Sample) -> None:
        """Append one sample."""
        self.count += 1
        self._pending.append({"id": sample.id, "messages": sample.chat()})
        if len(self._pending) == _GROUP_SAMPLES:
            self._flush()

    def close(self) -> None:
        """Write what is pending and finish the file."""
        if self._pending:
            self._flush()
        with named_errors(self._path):
            self._writer.close()

    def _flush(self) -> None:
        with named_errors(self._path):
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMA))
        self._pending = []


def read_samples(directory: Path, split: str) -> Iterator[Sample]:
    """Yield the samples of one split ("train" or "held_out") of an instructions artifact in order."""
    path = directory / f"{split}.parquet"
    if not path.is_file():
        raise UserError(f"{path} does not exist: delete {directory} and run again to rebuild it.")
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_GROUP_SAMPLES):
            for row in batch.to_pylist():
                yield Sample(row["id"], tuple(Message(**message) for message in row["messages"]))
