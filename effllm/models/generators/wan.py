"""Wan 2.1 (Wan team 2025), from text to video."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.generators.family import Family, load_part

if TYPE_CHECKING:
    from torch import Tensor


class Wan(Family):
    """Videos, of which an image is the shortest; text by UMT5."""

    name: ClassVar[str] = "wan"
    pipeline: ClassVar[str] = "WanPipeline"
    transformer: ClassVar[str] = "WanTransformer3DModel"
    autoencoder: ClassVar[str] = "AutoencoderKLWan"
    parts: ClassVar[Sequence[str]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    is_video: ClassVar[bool] = True

    def load_autoencoder(self, directory: Path, device: str) -> Any:
        from diffusers import AutoencoderKLWan

        return load_part(AutoencoderKLWan, directory / "vae").eval().to(device)

    def encode(self, autoencoder: Any, pixels: "Tensor") -> "Tensor":
        signal = pixels.transpose(1, 2).to(autoencoder.device) / 127.5 - 1
        mean, deviation = _statistics(autoencoder)
        return (autoencoder.encode(signal).latent_dist.mode() - mean) / deviation

    def decode(self, autoencoder: Any, latents: "Tensor") -> "Tensor":
        mean, deviation = _statistics(autoencoder)
        drawn = latents.to(autoencoder.device) * deviation + mean
        signal = autoencoder.decode(drawn).sample.transpose(1, 2)
        return ((signal + 1) * 127.5).round().clamp(0, 255).byte()

    def encode_texts(self, pipeline: Any, captions: list[str], tokens: int) -> Mapping[str, "Tensor"]:
        hidden, _ = pipeline.encode_prompt(
            prompt=captions, do_classifier_free_guidance=False, max_sequence_length=tokens
        )
        return {"encoder_hidden_states": hidden}

    def size_step(self, directory: Path) -> tuple[int, int]:
        from effllm.models.checkpoint.files import CONFIG, read_object

        coder = read_object(directory / "vae" / CONFIG, str(directory))
        _, patch, _ = read_object(directory / "transformer" / CONFIG, str(directory))["patch_size"]
        return int(2 ** (len(coder["dim_mult"]) - 1) * patch), int(2 ** sum(coder["temperal_downsample"]))

    def patches(self, transformer: Any, shape: Sequence[int]) -> int:
        sizes = zip(shape[1:], transformer.config.patch_size, strict=True)
        return math.prod(side // patch for side, patch in sizes)

    def write_tiny(self, directory: Path, seed: int) -> None:
        from effllm.models.generators.tiny import write_tiny_wan

        write_tiny_wan(directory, seed)


def _statistics(autoencoder: Any) -> tuple["Tensor", "Tensor"]:
    """Mean and standard deviation of each channel of latents, as the configuration has them."""
    import torch

    shape = (1, -1, 1, 1, 1)
    config, device = autoencoder.config, autoencoder.device
    return (
        torch.tensor(config.latents_mean, device=device).view(shape),
        torch.tensor(config.latents_std, device=device).view(shape),
    )
