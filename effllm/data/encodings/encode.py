"""Stage `encode`: samples with captions, encoded once by a pipeline's autoencoder and text encoders.

in:  captions, generator
out: <split>.latents.bin, <split>.samples.parquet, text.<argument>.bin, encodings.json

A killed run goes on with what it has encoded.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field

from effllm.data.captions.store import SPLITS, CaptionedSet
from effllm.data.encodings.growing import Growing
from effllm.data.encodings.store import STORED, EncodedSample, latents_path, text_path, write_samples
from effllm.errors import CellFailure, UserError
from effllm.fields import Dimension, Section
from effllm.models.generators import FAMILIES
from effllm.models.generators.family import Family, load_texts
from effllm.results.data import CaptionsSummary, EncodingsSummary
from effllm.results.model import GeneratorSummary
from effllm.runtime.progress import Progress
from effllm.runtime.stage import Job, main

# Captions, and samples of one shape, that are encoded together.
_TEXTS, _SAMPLES = 16, 4


class EncodingProtocol(Section):
    """The stage's slice of the study."""

    text_tokens: Dimension = Field(description="Of a caption, that T5 reads.")


def build(job: Job) -> None:
    """Encode both splits; `UserError` for shapes that do not fit the pipeline, `CellFailure` for no numbers."""
    protocol = job.config(EncodingProtocol)
    generator, captions = job.inputs["generator"].directory, job.inputs["captions"].directory
    summary = GeneratorSummary.read(generator)
    family = FAMILIES[summary.family]
    _require_fit(job, family, summary, CaptionsSummary.read(captions))
    sets = {split: CaptionedSet(captions, split) for split in SPLITS}
    distinct = dict.fromkeys(sample.caption for split in SPLITS for sample in sets[split].samples)
    texts = {text: number for number, text in enumerate(dict.fromkeys(("", *distinct)))}
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    # Convolutions in float32, by the same kernels each time.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    encoded = {name: Growing(job.scratch, name) for name in ("texts", *SPLITS)}
    with encoded["texts"] as kept:
        _encode_texts(job, family, list(texts), protocol.text_tokens, device, kept)
    with Progress(sum(map(len, sets.values())), unit="samples", label=f"encoding {job.id}") as bar:
        autoencoder = family.load_autoencoder(generator / "model", device)
        for split in SPLITS:
            with encoded[split] as kept:
                _encode_samples(job, family, autoencoder, sets[split], split, kept, bar)
    for split in SPLITS:
        write_samples(job.output, split, _listed(sets[split], encoded[split].shapes, texts))
    for kept in encoded.values():
        kept.publish(job.output)
    job.write(
        EncodingsSummary(
            splits={split: len(samples) for split, samples in sets.items()},
            texts=len(texts),
            text_shapes=encoded["texts"].shapes,
            family=family.name,
        )
    )


def _require_fit(job: Job, family: Family, generator: GeneratorSummary, captions: CaptionsSummary) -> None:
    where, pipeline = f"captions.{job.inputs['captions'].manifest.id}", job.inputs["generator"].manifest.id
    step, frame_step = generator.side_step, generator.frame_step
    for shape in captions.shapes:
        if any(int(side) % step for side in shape.split("x")):
            raise UserError(
                f"{where}.shapes: the sides of {shape} are no multiples of the {step} pixels that a patch of "
                f"{pipeline} is of: change them."
            )
    if not family.is_video and captions.frames > 1:
        raise UserError(
            f"{where}.frames: {captions.frames} are a clip, and {pipeline} draws images: write 1, or "
            "fine-tune a model of videos."
        )
    if (captions.frames - 1) % frame_step:
        raise UserError(
            f"{where}.frames: {captions.frames} less the first one is no multiple of the {frame_step} that "
            f"{pipeline} makes one of: write {captions.frames // frame_step * frame_step + 1}."
        )
    longest, frames = family.largest(job.inputs["generator"].directory / "model")
    for shape in captions.shapes:
        if max(map(int, shape.split("x"))) > longest:
            raise UserError(
                f"{where}.shapes: {shape} is larger than the {longest} pixels a side whose places {pipeline} knows: "
                "choose a smaller one."
            )
    if family.is_video and captions.frames > frames:
        raise UserError(
            f"{where}.frames: {captions.frames} are more than the {frames} whose places {pipeline} knows: take fewer."
        )


@torch.inference_mode()
def _encode_texts(job: Job, family: Family, texts: list[str], tokens: int, device: str, kept: Growing) -> None:
    """Write what the transformer takes of each text, and keep the shape of that by argument."""
    if kept.count == len(texts):
        return
    pipeline = load_texts(family, job.inputs["generator"].directory / "model", device)
    with Progress(len(texts), unit="texts", label=f"encoding {job.id}") as bar:
        bar.update(kept.count)
        for start in range(kept.count, len(texts), _TEXTS):
            several = texts[start : start + _TEXTS]
            pieces = {}
            for argument, values in family.encode_texts(pipeline, several, tokens).items():
                kept.shapes[argument] = list(values.shape[1:])
                stored = _stored(values, f"a text among {several[0][:40]!r} and the next")
                pieces[text_path(job.output, argument).name] = stored.tobytes()
            kept.append(pieces, len(several))
            bar.update(len(several))


@torch.inference_mode()
def _encode_samples(
    job: Job,
    family: Family,
    autoencoder: Any,
    captioned: CaptionedSet,
    split: str,
    kept: Growing,
    bar: Progress,
) -> None:
    """Write latents, and keep their shape by that of the pixels."""
    path = latents_path(job.output, split)
    bar.update(kept.count)
    for numbers in _batches(captioned):
        if numbers[0] < kept.count:
            continue
        pixels = torch.from_numpy(np.stack([captioned.pixels(number) for number in numbers]))
        names = f"{captioned.samples[numbers[0]].name} and the next"
        latents = _stored(family.encode(autoencoder, pixels), names)
        kept.shapes[_shape_of(captioned, numbers[0])] = list(latents.shape[1:])
        kept.append({path.name: latents.tobytes()}, len(numbers))
        bar.update(len(numbers))


def _listed(captioned: CaptionedSet, shapes: dict[str, list[int]], texts: dict[str, int]) -> list[EncodedSample]:
    """Where the latents of each sample are."""
    samples, offset = [], 0
    for number, sample in enumerate(captioned.samples):
        shape = tuple(shapes[_shape_of(captioned, number)])
        samples.append(EncodedSample(sample.name, sample.caption, shape, offset, texts[sample.caption]))
        offset += math.prod(shape)
    return samples


def _shape_of(captioned: CaptionedSet, number: int) -> str:
    sample = captioned.samples[number]
    return f"{sample.frames}x{sample.width}x{sample.height}"


def _batches(captioned: CaptionedSet) -> Iterator[list[int]]:
    """Numbers of samples in their order, a few of one shape at a time."""
    batch: list[int] = []
    for number, sample in enumerate(captioned.samples):
        first = captioned.samples[batch[0]] if batch else sample
        if len(batch) == _SAMPLES or (first.width, first.height) != (sample.width, sample.height):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _stored(values: torch.Tensor, what: str) -> np.ndarray:
    # Beyond float16 a value becomes infinite, and is refused as such.
    stored = values.float().cpu().numpy().astype(STORED)
    if not np.isfinite(stored).all():
        raise CellFailure("nan", f"the encoding of {what} is not finite in float16")
    return stored


if __name__ == "__main__":
    from effllm.stages.encode import EncodeStage

    main(EncodeStage(), build)
