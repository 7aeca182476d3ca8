"""Latents as files: `<split>.latents.bin` (float16, [images, views, channels, side, side]) and `<split>.labels.npy`."""

from pathlib import Path

import numpy as np

from effllm.data import arrays
from effllm.results.data import LatentsSummary

STORED = np.dtype(np.float16)


class LatentSet:
    """One split: latents in float32 [channels, side, side], and their labels."""

    def __init__(self, directory: Path, split: str):
        summary = LatentsSummary.read(directory)
        self.classes, self.channels, self.size = summary.classes, summary.channels, summary.size
        self.labels = arrays.load(directory / f"{split}.labels.npy")
        shape = (len(self.labels), summary.views, summary.channels, summary.size, summary.size)
        self._latents = np.memmap(latents_path(directory, split), dtype=STORED, mode="r", shape=shape)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._latents[index, 0].astype(np.float32), int(self.labels[index])

    def mirrored(self, index: int) -> np.ndarray:
        """The latents of the mirrored image, which are not the mirrored latents."""
        return self._latents[index, 1].astype(np.float32)


def latents_path(directory: Path, split: str) -> Path:
    """The file of one split."""
    return directory / f"{split}.latents.bin"
