"""Samples of a model before and after its fine-tuning, from the same noise, and what was to be learned: one PNG."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from effllm.data.encodings.store import EncodedSet
from effllm.diffusion.draws import sampling_noise
from effllm.models.generators.family import Family
from effllm.training.caption_draws import batches_of_one_shape, empty_texts, shifted, texts_of
from effllm.training.flow_transformer import FlowTransformer, arithmetic
from effllm.training.tuning_settings import TuningRun

# Noise of previews: the same for every run.
_SEED = 0
# Pixels of the side of a sample in the picture, at least and at most, and between samples and bands; frames of a clip.
_SMALLEST, _LARGEST, _GAP, _BAND_GAP, _FRAMES = 48, 192, 2, 8, 4


def previewed(samples: EncodedSet, count: int) -> list[int]:
    """Numbers of the held-out samples whose captions are drawn: the first of each caption, then others."""
    first: dict[str, int] = {}
    for number, sample in enumerate(samples.samples):
        first.setdefault(sample.caption, number)
    rest = (number for number in range(len(samples)) if number not in set(first.values()))
    return [*first.values(), *rest][:count]


@torch.inference_mode()
def draw(model: FlowTransformer, autoencoder: Any, samples: EncodedSet, run: TuningRun) -> dict[int, np.ndarray]:
    """A sample for each preview, uint8 [frames, 3, height, width]; on the model's device, by Euler's steps."""
    assert run.preview is not None
    model.eval()
    drawn: dict[int, np.ndarray] = {}
    for batch in batches_of_one_shape(samples, previewed(samples, run.preview.samples), run.micro_batch_size):
        texts = texts_of(samples, [samples.samples[number].text for number in batch])
        latents = sampling_noise(_SEED, 0, batch, samples.samples[batch[0]].shape).to(model.device)
        ways = {name: values.to(model.device) for name, values in texts.items()}
        if run.preview.guidance != 1:
            empty = empty_texts(samples, len(batch))
            ways = {name: torch.cat((values, empty[name].to(model.device))) for name, values in ways.items()}
        times = [shifted(1 - step / run.preview.steps, run.shift) for step in range(run.preview.steps + 1)]
        for time, following in pairwise(times):
            with arithmetic(run.dtype, model.device):
                latents = latents + (following - time) * _guided(model, latents, time, ways, run.preview.guidance)
        for number, pixels in zip(batch, model.family.decode(autoencoder, latents.float()), strict=True):
            drawn[number] = pixels.cpu().numpy()
    return dict(sorted(drawn.items()))


@torch.inference_mode()
def held_out(family: Family, autoencoder: Any, samples: EncodedSet, run: TuningRun) -> dict[int, np.ndarray]:
    """The samples themselves whose captions are drawn, as the autoencoder gives them back."""
    assert run.preview is not None
    decoded = {}
    for number in previewed(samples, run.preview.samples):
        latents = torch.from_numpy(samples.latents(number))[None].float()
        decoded[number] = family.decode(autoencoder, latents)[0].cpu().numpy()
    return dict(sorted(decoded.items()))


def _guided(
    model: FlowTransformer, latents: torch.Tensor, time: float, ways: dict[str, torch.Tensor], guidance: float
) -> torch.Tensor:
    repeats = 1 if guidance == 1 else 2
    inputs = torch.cat([latents] * repeats)
    output = model.direction(inputs, torch.full((len(inputs),), time, device=latents.device), ways)
    if repeats == 1:
        return output
    with_caption, without = output.chunk(2)
    return without + guidance * (with_caption - without)


def write_previews(path: Path, bands: Sequence[dict[int, np.ndarray]]) -> None:
    """A column for each sample, of a clip some frames below each other; a band below the other."""
    rows = [_row(list(band.values())) for band in bands]
    height = sum(row.height + _BAND_GAP for row in rows) - _BAND_GAP
    picture = Image.new("RGB", (rows[0].width, height), "black")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + _BAND_GAP
    picture.save(path, optimize=True)


def _row(samples: Sequence[np.ndarray]) -> Image.Image:
    columns = [_column(sample) for sample in samples]
    width = sum(column.width + _GAP for column in columns) - _GAP
    row = Image.new("RGB", (width, max(column.height for column in columns)), "black")
    left = 0
    for column in columns:
        row.paste(column, (left, 0))
        left += column.width + _GAP
    return row


def _column(sample: np.ndarray) -> Image.Image:
    chosen = np.unique(np.linspace(0, len(sample) - 1, min(_FRAMES, len(sample))).round().astype(int))
    height, width = sample.shape[2:]
    longest = max(width, height)
    scale = _LARGEST / longest if longest > _LARGEST else max(1, -(-_SMALLEST // longest))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    column = Image.new("RGB", (size[0], len(chosen) * (size[1] + _GAP) - _GAP), "black")
    for place, frame in enumerate(chosen):
        way = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
        column.paste(Image.fromarray(sample[frame].transpose(1, 2, 0)).resize(size, way), (0, place * (size[1] + _GAP)))
    return column
