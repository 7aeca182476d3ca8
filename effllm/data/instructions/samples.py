"""Conversations on disk: `train.parquet` and `held_out.parquet` of an instructions artifact.

Where samples have images, a third column says where in `images.bin` their files are.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data.instructions.pictures import Picture
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
_WITH_PICTURE = SCHEMA.append(pa.field("image", pa.struct([(name, pa.int64()) for name in Picture.KEYS])))
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
    picture: Picture | None = None

    def chat(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [asdict(message) for message in self.messages]

    def marked(self, marker: str) -> "Sample":
        """The same with what stands for its image before the first question."""
        first = next(index for index, message in enumerate(self.messages) if message.role == "user")
        asked = Message("user", marker + self.messages[first].content)
        return replace(self, messages=(*self.messages[:first], asked, *self.messages[first + 1 :]))


class SampleWriter:
    """Writes samples to `<directory>/<split>.parquet`; the bytes depend on the samples and their order alone."""

    def __init__(self, directory: Path, split: str, has_pictures: bool = False):
        self.count = 0
        self._schema = _WITH_PICTURE if has_pictures else SCHEMA
        self._path = directory / f"{split}.parquet"
        self._pending: list[dict[str, object]] = []
        with named_errors(self._path):
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", write_statistics=False)

    def write(self, sample: Sample) -> None:
        """Append one sample."""
        self.count += 1
        picture = {} if sample.picture is None else {"image": asdict(sample.picture)}
        self._pending.append({"id": sample.id, "messages": sample.chat(), **picture})
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
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
        self._pending = []


def read_samples(directory: Path, split: str) -> Iterator[Sample]:
    """Yield the samples of one split ("train" or "held_out") of an instructions artifact in order."""
    path = directory / f"{split}.parquet"
    if not path.is_file():
        raise UserError(f"{path} does not exist: delete {directory} and run again to rebuild it.")
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_GROUP_SAMPLES):
            for row in batch.to_pylist():
                picture = Picture(**row["image"]) if "image" in row else None
                yield Sample(row["id"], tuple(Message(**message) for message in row["messages"]), picture)
