"""Images as a vision-language model takes them: the marks in the text, the tokens in their place, the pixels.

Image processors are Transformers' own on Pillow and NumPy, so that torchvision is not needed. They are given images
one at a time: what an image becomes does not depend on its batch.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoImageProcessor

from effllm.errors import UserError, reason_of
from effllm.models.vision_language.parts import BEFORE_PATCHES, FAMILIES

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_AROUND_INTERNVL = ("<img>", "</img>")


class ImageProcessing:
    """The image processor in a model's directory; `UserError`, naming `where`, if it does not fit the model.

    marker: what stands for an image in the text. token_id: the image token in it, in whose place come as many as
    `tokens` says.
    """

    def __init__(self, directory: Path, config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase", where: str):
        self._config: Any = config
        if config.model_type not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise UserError(
                f"{where}: a {config.model_type} reads no images here; take a model of {known}, or instructions "
                "without images."
            )
        try:
            # Not only a fallback: where torchvision is installed, results would differ by its rounding.
            self._processor: Any = AutoImageProcessor.from_pretrained(directory, backend="pil", local_files_only=True)
        # Transformers raises nearly every type on a file that it cannot read.
        except Exception as error:
            raise UserError(
                f"{where}: its image processor cannot be loaded ({reason_of(error)}); a model that reads images has a "
                "preprocessor_config.json: fetch or save it again."
            ) from error
        self.token_id: int = self._config.image_token_id
        self.marker = _marker(self._config, tokenizer, where)
        self._patches_of_size = lru_cache(maxsize=1 << 16)(self._count_patches)
        self._require_fit(where)

    def tokens(self, width: int, height: int) -> int:
        """Image tokens of an image of this size."""
        return self._patches_of_size(width, height)

    def batch(self, images: "Sequence[Image.Image]") -> dict[str, torch.Tensor]:
        """What the model is given of the images, in their order, beside the text."""
        made = [self._processor(images=[image], return_tensors="pt") for image in images]
        keys = [key for key in ("pixel_values", "image_grid_thw") if key in made[0]]
        return {key: torch.cat([one[key] for one in made]) for key in keys}

    def of_tokens(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model is given of the text's image tokens, whether or not there are any."""
        if "qwen2" not in self._config.model_type:
            return {}
        # By these Qwen's positions go on in two directions over an image.
        return {"mm_token_type_ids": (input_ids == self.token_id).int()}

    def _count_patches(self, width: int, height: int) -> int:
        vision = self._config.vision_config
        if self._config.model_type == "llava":
            crops = getattr(self._processor, "do_center_crop", False)
            side = self._processor.crop_size if crops else self._processor.size
            patches = (side["height"] // vision.patch_size) * (side["width"] // vision.patch_size)
            # The strategy `default` leaves the first output out, whatever it is.
            outputs = patches + BEFORE_PATCHES[vision.model_type]
            return outputs if self._config.vision_feature_select_strategy == "full" else outputs - 1
        patches = self._processor.get_number_of_image_patches(height, width, {})
        if self._config.model_type == "internvl":
            return patches * self._config.image_seq_length
        return patches // self._processor.merge_size**2

    def _require_fit(self, where: str) -> None:
        vision, processor, family = self._config.vision_config, self._processor, self._config.model_type
        if "qwen2" not in family and vision.model_type not in BEFORE_PATCHES:
            raise UserError(
                f"{where}: config.json has a {vision.model_type} as its vision tower; take a {family} with one of "
                f"{', '.join(BEFORE_PATCHES)}."
            )
        # What is called of it, or read, later; processors of other families have other settings and methods.
        counts = () if family == "llava" else ("get_number_of_image_patches",)
        keys = ("patch_size", "merge_size", "temporal_patch_size") if "qwen2" in family else ("size",)
        if missing := [name for name in (*keys, *counts) if getattr(processor, name, None) is None]:
            raise UserError(
                f"{where}: its image processor, a {type(processor).__name__}, has no {missing[0]}, as a {family} "
                "needs; take preprocessor_config.json and config.json of one model."
            )
        if "qwen2" in family:
            read = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
            pairs = [(key, getattr(processor, key), value) for key, value in zip(keys, read, strict=True)]
        else:
            crops = getattr(processor, "do_center_crop", False)
            made = (processor.crop_size if crops else processor.size) or {}
            side = vision.image_size
            sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
            pairs = [("size", (made.get("height"), made.get("width")), sides)]
        if family == "internvl":
            patch = vision.patch_size[0] if isinstance(vision.patch_size, list | tuple) else vision.patch_size
            tokens = int(sides[0] // patch * self._config.downsample_ratio) ** 2
            if tokens != self._config.image_seq_length:
                raise UserError(
                    f"{where}: config.json has image_seq_length {self._config.image_seq_length}, and its vision tower "
                    f"makes {tokens} tokens of a tile; write {tokens}."
                )
        for key, own, theirs in pairs:
            if own != theirs:
                raise UserError(
                    f"{where}: its image processor has {key} {own} and its vision tower {theirs}; take "
                    "preprocessor_config.json and config.json of one model."
                )


def _marker(config: Any, tokenizer: "PreTrainedTokenizerBase", where: str) -> str:
    """The image token as the family's own processor writes it before a question."""
    known = {id: token for token, id in tokenizer.get_added_vocab().items()}

    def named(key: str, found: Any) -> str:
        if found in known:
            return known[found]
        raise UserError(
            f"{where}: config.json has {key} {found}, which its tokenizer does not know as a token of its own; take "
            "tokenizer and model of one revision."
        )

    token = named("image_token_id", config.image_token_id)
    if config.model_type == "llava":
        return f"{token}\n"
    if config.model_type == "internvl":
        if missing := [mark for mark in _AROUND_INTERNVL if mark not in known.values()]:
            raise UserError(
                f"{where}: its tokenizer does not know {missing[0]}, by which an internvl is shown images; take "
                "tokenizer and model of one revision."
            )
        return f"{token.join(_AROUND_INTERNVL)}\n"
    start, end = (named(key, getattr(config, key)) for key in ("vision_start_token_id", "vision_end_token_id"))
    return f"{start}{token}{end}"
