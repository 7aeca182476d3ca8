"""Samples with captions as files: `<split>.pixels.bin` (uint8, [frames, 3, height, width] one after the other) and
`<split>.samples.parquet` (name, caption, width, height, frames, offset in the file).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data.writing import PieceWriter, named_errors

SPLITS = ("train", "held_out")
_CHANNELS = 3
_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "caption": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "frames": pa.int32(),
        "offset": pa.int64(),
    }
)


@dataclass(frozen=True)
class CaptionedSample:
    """Where a sample is, and what it is called."""

    name: str
    caption: str
    width: int
    height: int
    frames: int
    offset: int


class CaptionWriter(PieceWriter):
    """Writes one split; the list of samples is there once it is closed."""

    def __init__(self, directory: Path, split: str):
        path, self._list_path = _paths(directory, split)
        super().__init__(path)
        self._rows: list[dict[str, str | int]] = []

    def finish(self) -> None:
        with named_errors(self._list_path):
            pq.write_table(pa.Table.from_pylist(self._rows, _SCHEMA), self._list_path)

    def __len__(self) -> int:
        return len(self._rows)

    def write(self, name: str, caption: str, pixels: np.ndarray) -> None:
        """Append a sample, uint8 [frames, 3, height, width]."""
        frames, _, height, width = pixels.shape
        offset = self.append(pixels.tobytes())
        self._rows.append(
            {"name": name, "caption": caption, "width": width, "height": height, "frames": frames, "offset": offset}
        )


class CaptionedSet:
    """One split."""

    def __init__(self, directory: Path, split: str):
        path, list_path = _paths(directory, split)
        self.samples = [CaptionedSample(**row) for row in pq.read_table(list_path).to_pylist()]
        self._pixels = np.memmap(path, dtype=np.uint8, mode="r") if self.samples else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.samples)

    def pixels(self, number: int) -> np.ndarray:
        """uint8 [frames, 3, height, width]."""
        sample = self.samples[number]
        shape = sample.frames, _CHANNELS, sample.height, sample.width
        return self._pixels[sample.offset : sample.offset + int(np.prod(shape))].reshape(shape)


def _paths(directory: Path, split: str) -> tuple[Path, Path]:
    return directory / f"{split}.pixels.bin", directory / f"{split}.samples.parquet"
