"""What is drawn for an image: functions of (seed, step, sample), so that no kill and no rank changes them.

Each draw has a counter-based generator of its own (Philox), whose key is the seed and the purpose.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from effllm.diffusion.settings import Ddpm, Draws, Flow

_NOISE, _TIME, _LABEL, _FLIP, _SAMPLING, _POSTERIOR = range(6)


class Images(Protocol):
    """Images [channels, size, size] in float32 from -1 to 1 (or latents), and their labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, int]: ...

    def mirrored(self, index: int, /) -> np.ndarray:
        """The same from left to right."""
        ...


def generator(seed: int, purpose: int, step: int, sample: int) -> np.random.Generator:
    """The generator of one draw."""
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, step, sample, 0], dtype=np.uint64)))


def sampling_noise(seed: int, step: int, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers for a step of sampling, [samples, *shape]."""
    return _normals(seed, _SAMPLING, step, samples, shape)


def posterior_noise(seed: int, view: int, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers for latents of a view of images, [samples, *shape]."""
    return _normals(seed, _POSTERIOR, view, samples, shape)


def _normals(seed: int, purpose: int, step: int, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
    drawn = [generator(seed, purpose, step, sample).standard_normal(shape, np.float32) for sample in samples]
    return torch.from_numpy(np.stack(drawn))


def time(objective: Ddpm | Flow, seed: int, step: int, sample: int) -> int | float:
    """A step of the chain, or a time from 0 to 1."""
    drawn = generator(seed, _TIME, step, sample)
    if isinstance(objective, Ddpm):
        return int(drawn.integers(objective.steps))
    if objective.times == "uniform":
        return float(drawn.random())
    return float(1 / (1 + np.exp(-drawn.standard_normal())))


def noise(seed: int, step: int, sample: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal numbers for a sample of a step of training."""
    return generator(seed, _NOISE, step, sample).standard_normal(shape, np.float32)


def lacks_label(seed: int, step: int, sample: int, share: float) -> bool:
    """Whether a sample is learned without its label or caption, as this share of them are."""
    return bool(generator(seed, _LABEL, step, sample).random() < share)


class TrainingDraws(Dataset[dict[str, Any]]):
    """Images in the order of training, each with what is drawn for it.

    order: numbers of images, `per_step` of them a step. classes: the label of no label.
    """

    def __init__(
        self,
        images: Images,
        order: np.ndarray,
        per_step: int,
        objective: Ddpm | Flow,
        draws: Draws,
        classes: int,
        seed: int,
    ):
        self.images, self.order, self.per_step = images, order, per_step
        self.objective, self.draws, self.classes, self.seed = objective, draws, classes, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, sample = index // self.per_step, int(self.order[index])
        image, label = self.images[sample]
        if self.draws.flip and generator(self.seed, _FLIP, step, sample).random() < 0.5:
            image = self.images.mirrored(sample)
        if lacks_label(self.seed, step, sample, self.draws.label_dropout):
            label = self.classes
        return {
            "images": image,
            "labels": label,
            "noise": noise(self.seed, step, sample, image.shape),
            "times": time(self.objective, self.seed, step, sample),
        }


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack samples; times of a chain are int64, others float32."""
    times = torch.tensor([sample["times"] for sample in samples])
    stacked = {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in ("images", "noise")}
    return {**stacked, "labels": torch.tensor([sample["labels"] for sample in samples]), "times": times}
