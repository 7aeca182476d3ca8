"""Model FLOPs of a vision-language model: those of its text as of a causal language model, and of its images.

In the terms of `effllm.models.costs`: products alone, 2 per multiply-add. A layer of the tower is counted for every
patch of an image, the projector for every image token.
"""

from typing import Any

from torch import nn

from effllm.models.vision_language.parts import BEFORE_PATCHES, part_of

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


class TextView:
    """A model as methods ask for its FLOPs, with the configuration of its text decoder."""

    def __init__(self, model: nn.Module, shape: Any):
        self._model = model
        self.config = shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class ImageFlops:
    """FLOPs of images, by their tokens; `model` is the bare one."""

    def __init__(self, model: nn.Module, config: Any):
        self._config = config
        family = config.model_type
        # Weights of products that see each patch, each patch and the class token, each image token.
        self._embedding = self._tower = self._projector = 0
        for name, module in model.named_modules():
            part = part_of(family, name)
            if part == "projector" and isinstance(module, nn.Linear):
                self._projector += module.weight.numel()
            elif part == "tower" and isinstance(module, _CONVOLUTIONS):
                self._embedding += module.weight.numel()
            # SigLIP's pooled output, which is used by nobody, takes less than 1 % of a published tower's FLOPs.
            elif part == "tower" and isinstance(module, nn.Linear) and ".head." not in name:
                self._tower += module.weight.numel()

    def forward(self, image_tokens: int) -> tuple[int, int]:
        """Of tower and projector in the forward pass."""
        vision = self._config.vision_config
        if "qwen2" in self._config.model_type:
            patches = image_tokens * vision.spatial_merge_size**2
            products = (self._embedding + self._tower) * patches
            return 2 * products + self._attention_by_windows(patches), 2 * self._projector * image_tokens
        sides = [vision.image_size, vision.patch_size]
        image, patch = (side[0] if isinstance(side, list | tuple) else side for side in sides)
        patches = (image // patch) ** 2
        tiles = image_tokens // self._config.image_seq_length if self._config.model_type == "internvl" else 1
        rows = patches + BEFORE_PATCHES[vision.model_type]
        attention = 4 * vision.num_hidden_layers * rows**2 * vision.hidden_size
        products = self._embedding * patches + self._tower * rows
        return tiles * (2 * products + attention), 2 * self._projector * image_tokens

    def training(self, image_tokens: int, trained: "list[str]") -> int:
        """In a step, of which `trained` names the parts that are: what lies below the lowest has no backward pass."""
        tower, projector = self.forward(image_tokens)
        if "tower" in trained:
            return 3 * tower + (3 if "projector" in trained else 2) * projector
        return tower + (2 if "projector" in trained else 1) * projector

    def _attention_by_windows(self, patches: int) -> int:
        """Qwen2.5's layers see windows, but for some; Qwen2's see the image."""
        vision = self._config.vision_config
        if not hasattr(vision, "window_size"):
            return 4 * patches**2 * vision.embed_dim * vision.depth
        seen = min(patches, (vision.window_size // vision.patch_size) ** 2)
        whole = len(vision.fullatt_block_indexes)
        return 4 * patches * vision.hidden_size * (whole * patches + (vision.depth - whole) * seen)
