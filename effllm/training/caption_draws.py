"""Samples with captions in the order of training, each with what is drawn for it: functions of (seed, step, sample)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from effllm.data.encodings.store import EncodedSet
from effllm.diffusion.draws import lacks_label, noise, time
from effllm.training.tuning_settings import TuningRun

_EMPTY = 0
# Noise of held-out samples, so that it is the same for every run.
_HELD_OUT_SEED = 0
Sample = dict[str, Any]


def shaped_order(shapes: Sequence[tuple[int, ...]], per_step: int, steps: int, seed: int) -> np.ndarray:
    """Numbers of samples in the order of training, int64 (steps * per_step,): a step has samples of one shape.

    Each step draws its shape by the number of samples that have it. Of a shape's samples one permutation follows the
    other, so that a sample comes again once all have been there; of fewer than a step takes, within the step.
    """
    generator = np.random.default_rng(seed)
    members: dict[tuple[int, ...], list[int]] = {}
    for number, shape in enumerate(shapes):
        members.setdefault(shape, []).append(number)
    groups = [np.array(numbers) for numbers in members.values()]
    share = np.array([len(group) for group in groups]) / len(shapes)
    chosen = generator.choice(len(groups), steps, p=share)
    streams: list[Iterator[np.ndarray]] = []
    for number, group in enumerate(groups):
        wanted = int((chosen == number).sum()) * per_step
        passes = [generator.permutation(group) for _ in range(-(-wanted // len(group)))]
        stream = np.concatenate(passes)[:wanted] if passes else group[:0]
        streams.append(iter(stream.reshape(-1, per_step)))
    return np.concatenate([next(streams[number]) for number in chosen])


class CaptionDraws(Dataset[Sample]):
    """Encoded samples in the order of training, with noise, times and captions as they are drawn."""

    def __init__(self, samples: EncodedSet, order: np.ndarray, run: TuningRun):
        self.samples, self.order, self.run = samples, order, run

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Sample:
        run, step, number = self.run, index // self.run.samples_per_step, int(self.order[index])
        text = self.samples.samples[number].text
        if lacks_label(run.seed, step, number, run.caption_dropout):
            text = _EMPTY
        drawn = time(run.flow, run.seed, step, number)
        return _sample(self.samples, number, text, run.seed, step, shifted(drawn, run.shift))


def shifted(time: float, shift: float) -> float:
    """The time with more noise, as at a higher resolution (Esser et al. 2024, section 5.3.2)."""
    return shift * time / (1 + (shift - 1) * time)


def held_out_batches(
    samples: EncodedSet, numbers: Sequence[int], times: Sequence[float], size: int
) -> Iterator[tuple[list[int], int, dict[str, Tensor]]]:
    """Batches of one shape and one time: the numbers of their samples, the number of the time, and what is drawn."""
    for of_time, time_ in enumerate(times):
        for batch in batches_of_one_shape(samples, numbers, size):
            drawn = [
                _sample(samples, number, samples.samples[number].text, _HELD_OUT_SEED, of_time, time_)
                for number in batch
            ]
            yield batch, of_time, collate(drawn)


def batches_of_one_shape(samples: EncodedSet, numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """The numbers, those of one shape together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number in numbers:
        by_shape.setdefault(samples.samples[number].shape, []).append(number)
    for group in by_shape.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def texts_of(samples: EncodedSet, texts: Sequence[int]) -> dict[str, Tensor]:
    """What the transformer takes of texts."""
    several = [samples.text(text) for text in texts]
    return {name: torch.from_numpy(np.stack([text[name] for text in several])) for name in several[0]}


def empty_texts(samples: EncodedSet, count: int) -> dict[str, Tensor]:
    """The same of no caption."""
    return texts_of(samples, [_EMPTY] * count)


def _sample(samples: EncodedSet, number: int, text: int, seed: int, step: int, time: float) -> Sample:
    latents = samples.latents(number)
    drawn = noise(seed, step, number, latents.shape)
    return {"latents": latents, "noise": drawn, "times": np.float32(time), **samples.text(text)}


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Stack samples of one shape."""
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
