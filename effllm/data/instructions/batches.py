"""Batches of encoded conversations, and the log of which samples a training run consumed.

    dataset = SequenceDataset(encoded.sequences)
    collate = Collate(pad_token_id=..., packing=encoding.packing)
    batch = collate([dataset[i] for i in indices])

Without packing a batch holds `input_ids`, `labels` and `attention_mask`; with packing `position_ids` (each sample
starts at 0) take the place of the mask, and Transformers builds from them a mask that keeps samples apart. Rows are
padded to the longest of the batch. `sequence_index` (rows,) says which sequences of the dataset they are: take it out
with `take_indices` before the model sees the batch, and note it in `ConsumedSamples`.

Samples with images have what the model is given of them too (`ImageBatches`).

Packed samples are kept apart only where the model builds its mask that way and `use_cache` is False:
`require_separate_samples` tries it out on the model itself.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

from effllm.data.instructions.encoding import IGNORED, TrainingSequence
from effllm.data.instructions.pictures import Picture, PictureReader
from effllm.errors import UserError
from effllm.models.text import text_config
from effllm.models.vision_language.processing import ImageProcessing
from effllm.runtime.artifact import write_text

_INDEX = "sequence_index"


class SequenceDataset(Dataset[tuple[int, TrainingSequence]]):
    """Sequences with their numbers, in the order of `sequences`; the sampler decides the order of training."""

    def __init__(self, sequences: list[TrainingSequence]):
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> tuple[int, TrainingSequence]:
        return index, self.sequences[index]

    def sample_ids(self, indices: Iterable[int]) -> list[str]:
        """Ids of the samples in the sequences of these numbers, in order."""
        return [id for index in indices for id in self.sequences[index].ids]


class Collate:
    """Makes a batch of numbered sequences: int64 tensors (rows, longest of the rows), see the module."""

    def __init__(self, pad_token_id: int, packing: bool, images: "ImageBatches | None" = None):
        self._pad_token_id = pad_token_id
        self._packing = packing
        self._images = images

    def __call__(self, items: list[tuple[int, TrainingSequence]]) -> dict[str, torch.Tensor]:
        """Pad and stack."""
        shape = (len(items), max(len(sequence) for _, sequence in items))
        input_ids = np.full(shape, self._pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        # Padding counts from 0 like one more sample, so that no real token is in its reach, nor it in theirs.
        positions = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, (_, sequence) in enumerate(items):
            start = 0
            for sample in sequence.samples:
                end = start + len(sample)
                input_ids[row, start:end] = sample.input_ids
                labels[row, start:end] = sample.labels
                positions[row, start:end] = np.arange(len(sample))
                mask[row, start:end] = 1
                start = end
            positions[row, start:] = np.arange(shape[1] - start)
        keeps_apart = {"position_ids": positions} if self._packing else {"attention_mask": mask}
        arrays = {"input_ids": input_ids, "labels": labels, **keeps_apart}
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._images is not None:
            pictures = [sample.picture for _, sequence in items for sample in sequence.samples]
            batch |= self._images(batch["input_ids"], [picture for picture in pictures if picture is not None])
        batch[_INDEX] = torch.tensor([index for index, _ in items])
        return batch


class ImageBatches:
    """What a model is given of images: theirs, or in the place of each a blank one of its size."""

    def __init__(self, processing: ImageProcessing, directory: Path, blank: bool = False):
        self._processing = processing
        self._reader = PictureReader(directory)
        self._blank = blank

    def __call__(self, input_ids: torch.Tensor, pictures: Sequence[Picture]) -> dict[str, torch.Tensor]:
        """The tensors beside those of the text, images in the order of the rows."""
        images = [self._reader.blank(one) if self._blank else self._reader.read(one) for one in pictures]
        return self._processing.batch(images) | self._processing.of_tokens(input_ids)


def take_indices(batch: dict[str, Any]) -> list[int]:
    """Remove the numbers of its sequences from `batch` and return them."""
    return batch.pop(_INDEX).tolist()


class ConsumedSamples:
    """Which samples reached the model, in order, by optimizer step.

    Saved with every checkpoint and loaded to go on from it, so that a resumed run tells what an uninterrupted one
    does. With several ranks each keeps its own; `merge` makes one of their files.
    """

    def __init__(self, dataset: SequenceDataset):
        self.steps: list[list[str]] = []
        self._dataset = dataset
        self._ids: list[str] = []

    def add(self, indices: Iterable[int]) -> None:
        """Note the sequences of one forward pass."""
        self._ids += self._dataset.sample_ids(indices)

    def end_step(self) -> None:
        """Close the step that the passes since the last one made up."""
        self.steps.append(self._ids)
        self._ids = []

    def save(self, path: Path) -> None:
        """Write a JSON line `{"step", "ids"}` for each step, whole or not at all."""
        _write(path, self.steps)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        self.steps = self.read(path)

    @staticmethod
    def read(path: Path) -> list[list[str]]:
        """Sample ids by step."""
        return [json.loads(line)["ids"] for line in path.read_text().splitlines()]

    @staticmethod
    def merge(paths: Iterable[Path], output: Path) -> None:
        """One file of those of several ranks: in each step the ids of one rank after those of the one before."""
        steps = zip(*map(ConsumedSamples.read, paths), strict=True)
        _write(output, [[id for ids in ranks for id in ids] for ranks in steps])


@torch.inference_mode()
def require_separate_samples(model: "PreTrainedModel | PeftModel") -> None:
    """Raise `UserError` unless packed samples get the logits from `model` that they get alone.

    Call it on the model as it will train: after the Trainer took it, which sets `config.use_cache` to False. Two
    rows of two samples of 4 tokens pass through it alone, packed, and joined without their positions, which shows
    how large a leak is. Attention kernels that ignore the mask, recurrent layers and an active cache all leak.
    """
    was_training = model.training
    model.eval()
    tokens = 4
    # Every vocabulary has ids below 256; their meaning does not matter.
    ids = torch.arange(4 * tokens, device=model.device).view(4, tokens) % min(text_config(model.config).vocab_size, 256)
    positions = torch.arange(tokens, device=model.device).repeat(2, 2)
    alone = model(input_ids=ids).logits
    packed = model(input_ids=ids.view(2, 2 * tokens), position_ids=positions).logits.view_as(alone)
    joined = model(input_ids=ids.view(2, 2 * tokens)).logits.view_as(alone)
    model.train(was_training)
    difference, leak = ((other - alone).float().abs().max().item() for other in (packed, joined))
    # Kernels round differently at another length of the row, by a few percent of a leak in bfloat16.
    if not difference < 0.2 * leak:
        raise UserError(
            f"packing: samples of one sequence see each other in {type(model).__name__} (their logits differ by "
            f"{difference:.3g} from those they get alone); set packing to false."
        )


def _write(path: Path, steps: list[list[str]]) -> None:
    lines = (json.dumps({"step": step, "ids": ids}) for step, ids in enumerate(steps, start=1))
    write_text(path, "".join(f"{line}\n" for line in lines))
