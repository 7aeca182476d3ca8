"""Autoencoders of images, by diffusers' AutoencoderKL: images to latents and back (Rombach et al. 2022).

torch and diffusers are imported where an autoencoder is loaded, so that a directory is checked without them.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.errors import UserError
from effllm.models.checkpoint.files import CONFIG, read_object
from effllm.models.checkpoint.headers import read_headers

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = (CONFIG, WEIGHTS)
_CLASS = "AutoencoderKL"
# A latent of each this many pixels, at most.
_LARGEST_DOWNSCALE = 64


@dataclass(frozen=True)
class AutoencoderShape:
    """What a configuration says: channels of images and latents, pixels of a latent's side, scaling and shift."""

    channels: int
    latent_channels: int
    downscale: int
    scaling_factor: float
    shift_factor: float


def check_autoencoder(directory: Path, where: str) -> AutoencoderShape:
    """The shape of the autoencoder in a directory; `UserError`, beginning with `where`, for what is none."""
    for name in FILES:
        if not (directory / name).is_file():
            raise UserError(
                f"{where}: {str(directory)!r} has no {name}; name the directory that diffusers saved an {_CLASS} in."
            )
    config = read_object(directory / CONFIG, where)
    if (found := config.get("_class_name")) != _CLASS:
        raise UserError(f"{where}: config.json is that of {str(found)[:60]!r} and not of an {_CLASS}; take one.")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise UserError(
            f"{where}: config.json normalizes latents channel by channel (latents_mean, latents_std), which is not "
            "done here; take an autoencoder with a scaling_factor alone."
        )
    shape = AutoencoderShape(
        channels=_whole(config, "in_channels", 3, where),
        latent_channels=_whole(config, "latent_channels", 4, where),
        downscale=_downscale(config, where),
        scaling_factor=_number(config, "scaling_factor", 0.18215, where),
        shift_factor=_number(config, "shift_factor", 0.0, where),
    )
    if shape.channels not in (1, 3) or _whole(config, "out_channels", 3, where) != shape.channels:
        raise UserError(f"{where}: config.json: in_channels and out_channels are not 1 or 3 each; take another.")
    if shape.scaling_factor <= 0:
        raise UserError(f"{where}: config.json: scaling_factor {shape.scaling_factor:g} is not positive; correct it.")
    read_headers(directory, [WEIGHTS], where)
    return shape


def _whole(config: dict[str, Any], key: str, default: int, where: str) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 4096:
        raise UserError(f"{where}: config.json: {key} {str(value)[:20]!r} is no number of channels; correct it.")
    return value


def _number(config: dict[str, Any], key: str, default: float, where: str) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: config.json: {key} {str(value)[:20]!r} is no number; correct it.")
    return float(value)


def _downscale(config: dict[str, Any], where: str) -> int:
    blocks = config.get("block_out_channels", [64])
    if not isinstance(blocks, list) or not blocks or 2 ** (len(blocks) - 1) > _LARGEST_DOWNSCALE:
        raise UserError(f"{where}: config.json: block_out_channels is no list of a few widths; correct it.")
    # Every block but the last halves the image.
    return int(2 ** (len(blocks) - 1))


class Autoencoder:
    """An autoencoder on a device, in float32. Latents are those that a model learns: shifted, then scaled."""

    def __init__(self, model: Any, shape: AutoencoderShape):
        self._model, self.shape = model, shape

    @property
    def device(self) -> str:
        """Where it is."""
        return str(self._model.device)

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def encode(self, images: "Tensor", noise: "Tensor | None" = None) -> "Tensor":
        """Latents float32 [n, latent channels, H / downscale, W / downscale] of images uint8 [n, channels, H, W].

        noise: standard normal numbers of the latents' shape, by which the posterior is sampled; None takes its mean.
        """
        import torch

        with torch.inference_mode():
            inputs = images.to(self._model.device, torch.float32) / 127.5 - 1
            posterior = self._model.encode(inputs).latent_dist
            drawn = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
            return (drawn - self.shape.shift_factor) * self.shape.scaling_factor

    def decode(self, latents: "Tensor") -> "Tensor":
        """Images uint8 [n, channels, H, W] of latents as `encode` gives them."""
        import torch

        with torch.inference_mode():
            drawn = latents.to(self._model.device, torch.float32) / self.shape.scaling_factor + self.shape.shift_factor
            images = self._model.decode(drawn).sample
            return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def load_autoencoder(directory: Path, device: str) -> Autoencoder:
    """The autoencoder in `directory`, in evaluation; `UserError` or `CellFailure` for what cannot be loaded whole."""
    import torch
    from diffusers import AutoencoderKL

    from effllm.models.loading import moved, reading, require_all_weights

    shape = check_autoencoder(directory, str(directory))
    with reading(directory):
        loaded: Any = AutoencoderKL.from_pretrained(
            directory,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
        )
    model, keys = loaded
    require_all_weights(keys)
    return Autoencoder(moved(model.eval().requires_grad_(False), device), shape)
