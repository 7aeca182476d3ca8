"""Latents and text embeddings as files.

`<split>.latents.bin` has the latents of a split one after the other, and `<split>.samples.parquet` of each sample its
name, caption, latent shape, offset in values and the number of its text. `text.<argument>.bin` has what the transformer
takes of each text under that argument; text 0 is the empty one. All values are float16.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data.writing import named_errors
from effllm.results.data import EncodingsSummary

STORED = np.dtype(np.float16)
_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "caption": pa.string(),
        "shape": pa.list_(pa.int32()),
        "offset": pa.int64(),
        "text": pa.int32(),
    }
)


@dataclass(frozen=True)
class EncodedSample:
    """Where a sample's latents and its text are."""

    name: str
    caption: str
    shape: tuple[int, ...]
    offset: int
    text: int


class EncodedSet:
    """One split."""

    def __init__(self, directory: Path, split: str):
        rows = pq.read_table(samples_path(directory, split)).to_pylist()
        self.samples = [EncodedSample(**row | {"shape": tuple(row["shape"])}) for row in rows]
        self._latents = np.memmap(latents_path(directory, split), dtype=STORED, mode="r")
        summary = EncodingsSummary.read(directory)
        self._texts = {
            argument: np.memmap(text_path(directory, argument), STORED, "r", shape=(summary.texts, *shape))
            for argument, shape in summary.text_shapes.items()
        }

    def __len__(self) -> int:
        return len(self.samples)

    def latents(self, number: int) -> np.ndarray:
        """float16, in the sample's shape."""
        sample = self.samples[number]
        values = self._latents[sample.offset : sample.offset + math.prod(sample.shape)]
        return np.array(values.reshape(sample.shape))

    def text(self, text: int) -> dict[str, np.ndarray]:
        """float16 by the transformer's arguments; text 0 is the empty one."""
        return {argument: np.array(values[text]) for argument, values in self._texts.items()}


def write_samples(directory: Path, split: str, samples: list[EncodedSample]) -> None:
    """The list of a split's samples."""
    path = samples_path(directory, split)
    rows = [vars(sample) | {"shape": list(sample.shape)} for sample in samples]
    with named_errors(path):
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), path)


def latents_path(directory: Path, split: str) -> Path:
    """The file of a split's latents."""
    return directory / f"{split}.latents.bin"


def samples_path(directory: Path, split: str) -> Path:
    """The file of a split's list."""
    return directory / f"{split}.samples.parquet"


def text_path(directory: Path, argument: str) -> Path:
    """The file of what the transformer takes of texts under an argument."""
    return directory / f"text.{argument}.bin"
