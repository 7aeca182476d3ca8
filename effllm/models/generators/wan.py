"""Wan 2.1 (Wan team 2025), from text to video."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.generators.family import Family, Layer, load_part

if TYPE_CHECKING:
    from torch import Tensor

# Pixels of a latent's side, and frames of one latent after the first. diffusers' encoder takes frames by as many,
# whatever its configuration, and leaves out a rest.
_DOWNSCALE, _FRAMES = 8, 4
# diffusers' default of places along a side.
_PLACES = 1024


class Wan(Family):
    """Videos, of which an image is the shortest; text by UMT5."""

    name: ClassVar[str] = "wan"
    pipeline: ClassVar[str] = "WanPipeline"
    transformer: ClassVar[str] = "WanTransformer3DModel"
    autoencoder: ClassVar[str] = "AutoencoderKLWan"
    parts: ClassVar[Sequence[str]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    joints: ClassVar[Sequence[tuple[str, str]]] = (
        ("transformer.in_channels", "vae.z_dim"),
        ("transformer.text_dim", "text_encoder.d_model"),
    )
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
        # Wan 2.2's encoder begins by taking pixels together.
        step = 2 ** (len(coder["dim_mult"]) - 1) * (coder.get("patch_size") or 1) * patch
        return int(step), max(_FRAMES, int(2 ** sum(coder["temperal_downsample"])))

    def largest(self, directory: Path) -> tuple[int, int]:
        from effllm.models.checkpoint.files import CONFIG, read_object

        config = read_object(directory / "transformer" / CONFIG, str(directory))
        places, (side, frames) = config.get("rope_max_seq_len", _PLACES), self.size_step(directory)
        return places * side, (places * config["patch_size"][0] - 1) * frames + 1

    def patches(self, transformer: Any, shape: Sequence[int]) -> int:
        sizes = zip(shape[1:], transformer.config.patch_size, strict=True)
        return math.prod(side // patch for side, patch in sizes)

    def layers(self, config: Mapping[str, Any]) -> dict[str, Layer]:
        width, patch = _width(config), math.prod(config["patch_size"])
        embedder = "condition_embedder."
        found = {
            f"{embedder}time_embedder.linear_1": Layer(config["freq_dim"], width, "one"),
            f"{embedder}time_embedder.linear_2": Layer(width, width, "one"),
            f"{embedder}time_proj": Layer(width, 6 * width, "one"),
            f"{embedder}text_embedder.linear_1": Layer(config["text_dim"], width, "texts"),
            f"{embedder}text_embedder.linear_2": Layer(width, width, "texts"),
            "proj_out": Layer(width, patch * config["out_channels"], "patches"),
        }
        square, texts = Layer(width, width, "patches"), Layer(width, width, "texts")
        block = {f"attn1.{name}": square for name in ("to_q", "to_k", "to_v", "to_out.0")}
        block |= {"attn2.to_q": square, "attn2.to_k": texts, "attn2.to_v": texts, "attn2.to_out.0": square}
        block["ffn.net.0.proj"] = Layer(width, config["ffn_dim"], "patches")
        block["ffn.net.2"] = Layer(config["ffn_dim"], width, "patches")
        for number in range(config["num_layers"]):
            found |= {f"blocks.{number}.{name}": layer for name, layer in block.items()}
        return found

    def loose_parameters(self, config: Mapping[str, Any]) -> int:
        width, patch = _width(config), math.prod(config["patch_size"])
        # Of a block: the table of shifts, norms of queries and keys, and one before attention to texts.
        block = 6 + 4 + (2 if config["cross_attn_norm"] else 0)
        return width * (patch * config["in_channels"] + 1 + 2 + block * config["num_layers"])

    def score_products(self, config: Mapping[str, Any], patches: int, texts: int) -> int:
        return int(2 * _width(config) * config["num_layers"] * patches * (patches + texts))

    def rows(self, config: Mapping[str, Any], size: tuple[int, int], frames: int, text_tokens: int) -> tuple[int, int]:
        depth, height, width = config["patch_size"]
        latents = (1 + (frames - 1) // _FRAMES) // depth
        return latents * (size[1] // _DOWNSCALE // height) * (size[0] // _DOWNSCALE // width), text_tokens

    def text_numbers(self, config: Mapping[str, Any], texts: int) -> int:
        return int(texts * config["text_dim"])

    def write_tiny(self, directory: Path, seed: int) -> None:
        from effllm.models.generators.tiny import learn_to_draw, write_tiny_wan

        write_tiny_wan(directory, seed)
        learn_to_draw(self, directory, seed)


def _statistics(autoencoder: Any) -> tuple["Tensor", "Tensor"]:
    """Mean and standard deviation of each channel of latents, as the configuration has them."""
    import torch

    shape = (1, -1, 1, 1, 1)
    config, device = autoencoder.config, autoencoder.device
    return (
        torch.tensor(config.latents_mean, device=device).view(shape),
        torch.tensor(config.latents_std, device=device).view(shape),
    )


def _width(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"] * config["attention_head_dim"])
