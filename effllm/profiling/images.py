"""Prompts with images: what a model is given of them, and the time that encoding them takes alone."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from effllm.errors import CellFailure
from effllm.models.vision_language.flops import ImageFlops
from effllm.models.vision_language.parts import FAMILIES
from effllm.profiling.decoding import Generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from effllm.models.loading import CausalLM
    from effllm.models.vision_language.processing import ImageProcessing
    from effllm.study.evaluation import Workload

# What the model's own encoding of images takes, of what it is given.
_PIXELS = ("pixel_values", "image_grid_thw")


@dataclass(frozen=True)
class SequenceImages:
    """The images of one sequence: how many, the tokens that they take, and the model FLOPs of encoding them."""

    count: int = 0
    tokens: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Prompt:
    """Token ids [batch, tokens] on the model's device, and what it is given of images beside them."""

    ids: torch.Tensor
    given: dict[str, torch.Tensor]


class ImagePrompts:
    """Puts images before prompts, as the model's own processor makes them; raises `CellFailure` (unsupported) for a
    model that reads none.

    Images are noise, drawn with `seed`: what an image costs does not depend on what it shows.
    """

    def __init__(self, model: "CausalLM", tokenizer: "PreTrainedTokenizerBase | None", seed: int):
        self._model, self._tokenizer, self._seed = model, tokenizer, seed
        self._processing: ImageProcessing | None = None

    def of(self, workload: "Workload") -> SequenceImages:
        """The images of one of the workload's sequences."""
        if not workload.image_size:
            return SequenceImages()
        tokens = self._made().tokens(workload.image_size, workload.image_size)
        flops = sum(ImageFlops(self._model, self._model.config).forward(tokens))
        return SequenceImages(workload.images, workload.images * tokens, workload.images * flops)

    def prompt(self, ids: torch.Tensor, workload: "Workload", device: str) -> Prompt:
        """Random text [batch, tokens] after the workload's images, on the device; text alone where it has none."""
        if not workload.image_size:
            return Prompt(ids.to(device), {})
        from PIL import Image

        processing, tokenizer = self._made(), self._tokenizer
        assert tokenizer is not None
        marked = tokenizer(processing.marker, add_special_tokens=False)["input_ids"]
        one = self.of(workload).tokens // workload.images
        marks = [mark for id in marked for mark in [id] * (one if id == processing.token_id else 1)]
        # What stands for images stands for these alone.
        text = torch.where(ids == processing.token_id, (processing.token_id + 1) % 2, ids)
        head = torch.tensor(marks * workload.images, dtype=ids.dtype).expand(len(ids), -1)
        whole = torch.cat([head, text], dim=1)
        generator = torch.Generator().manual_seed(self._seed)
        shape = (workload.image_size, workload.image_size, 3)
        noise = [
            torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
            for _ in range(len(ids) * workload.images)
        ]
        given = processing.batch([Image.fromarray(levels) for levels in noise]) | processing.of_tokens(whole)
        given["pixel_values"] = given["pixel_values"].to(self._model.dtype)
        return Prompt(whole.to(device), {name: tensor.to(device) for name, tensor in given.items()})

    def _made(self) -> "ImageProcessing":
        family = self._model.config.model_type
        if family not in FAMILIES:
            raise CellFailure("unsupported", f"the workload's prompts have images, and a {family} reads text alone")
        if self._tokenizer is None:
            raise CellFailure("unsupported", "the workload's prompts have images, and the model has no tokenizer")
        if self._processing is None:
            # A second that workloads of text need not pay.
            from effllm.models.vision_language.processing import ImageProcessing

            directory = Path(str(self._model.name_or_path))
            self._processing = ImageProcessing(directory, self._model.config, self._tokenizer, str(directory))
        return self._processing


class TimedEncoding:
    """The images of a prompt encoded again and again, to the features that stand in the places of image tokens."""

    def __init__(self, model: "CausalLM", given: dict[str, torch.Tensor], device: str):
        self._encode: Any = getattr(model, "get_image_features")  # noqa: B009  (of these families alone)
        self._given = {key: given[key] for key in _PIXELS if key in given}
        self._device = device

    @torch.inference_mode()
    def run(self) -> Generation:
        """Encode once: a generation of no token."""
        self._wait()
        started = time.perf_counter()
        self._encode(**self._given)
        self._wait()
        return Generation(time.perf_counter() - started, [], 0)

    def _wait(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
