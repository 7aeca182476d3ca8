"""Images of one size as files: `<split>.images.bin` (uint8, one image after the other) and `<split>.labels.npy`."""

from pathlib import Path

import numpy as np

from effllm.data import arrays
from effllm.data.writing import PieceWriter
from effllm.results.data import ImagesSummary

SPLITS = ("train", "held_out")


class ImageWriter(PieceWriter):
    """Writes one split; the labels are there once it is closed."""

    def __init__(self, directory: Path, split: str):
        super().__init__(directory / f"{split}.images.bin")
        self._labels_path = directory / f"{split}.labels.npy"
        self._labels: list[int] = []

    def finish(self) -> None:
        arrays.save(self._labels_path, np.array(self._labels, dtype=np.int32))

    def __len__(self) -> int:
        return len(self._labels)

    def write(self, image: np.ndarray, label: int) -> None:
        """Append an image, uint8 [channels, size, size]."""
        self.append(image.tobytes())
        self._labels.append(label)


class ImageSet:
    """One split: images in float32 from -1 to 1 [channels, size, size], and their labels."""

    def __init__(self, directory: Path, split: str):
        summary = ImagesSummary.read(directory)
        self.classes = summary.classes
        self.pixels, self.labels = open_split(directory, split, summary.channels, summary.size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index].astype(np.float32) / 127.5 - 1, int(self.labels[index])

    def mirrored(self, index: int) -> np.ndarray:
        """The image from left to right."""
        return self[index][0][..., ::-1].copy()


def open_split(directory: Path, split: str, channels: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What `ImageWriter` has written: pixels, uint8 [images, channels, size, size], mapped and not read, and labels."""
    labels = arrays.load(directory / f"{split}.labels.npy")
    shape = (len(labels), channels, size, size)
    return np.memmap(directory / f"{split}.images.bin", dtype=np.uint8, mode="r", shape=shape), labels
