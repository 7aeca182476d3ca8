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
from effllm.models.vision_language.parts import FAMILIES

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


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
        token = tokenizer.convert_ids_to_tokens(self.token_id)
        if not isinstance(token, str) or token not in tokenizer.get_added_vocab():
            raise UserError(
                f"{where}: config.json has the image token {self.token_id}, which its tokenizer does not know; take "
                "tokenizer and model of one revision."
            )
        self.marker = _around(token, self._config, tokenizer)
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
            side = self._processor.crop_size if self._processor.do_center_crop else self._processor.size
            patches = (side["height"] // vision.patch_size) * (side["width"] // vision.patch_size)
            # CLIP's class token is left out by the strategy `default`.
            return patches + (self._config.vision_feature_select_strategy == "full")
        patches = self._processor.get_number_of_image_patches(height, width, {})
        if self._config.model_type == "internvl":
            return patches * self._config.image_seq_length
        return patches // self._processor.merge_size**2

    def _require_fit(self, where: str) -> None:
        vision, processor, family = self._config.vision_config, self._processor, self._config.model_type
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
        for key, own, theirs in pairs:
            if own != theirs:
                raise UserError(
                    f"{where}: its image processor has {key} {own} and its vision tower {theirs}; take "
                    "preprocessor_config.json and config.json of one model."
                )


def _around(token: str, config: Any, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The token as the family's own processor writes it before a question."""
    if config.model_type == "llava":
        return f"{token}\n"
    if config.model_type == "internvl":
        return f"<img>{token}</img>\n"
    ids = (config.vision_start_token_id, config.vision_end_token_id)
    start, end = (tokenizer.convert_ids_to_tokens(id) for id in ids)
    return f"{start}{token}{end}"
