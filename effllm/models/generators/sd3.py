"""Stable Diffusion 3 and 3.5 (Esser et al. 2024)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.generators.family import Family

if TYPE_CHECKING:
    from torch import Tensor


class Sd3(Family):
    """Images; text by two CLIP encoders and T5."""

    name: ClassVar[str] = "sd3"
    pipeline: ClassVar[str] = "StableDiffusion3Pipeline"
    transformer: ClassVar[str] = "SD3Transformer2DModel"
    autoencoder: ClassVar[str] = "AutoencoderKL"
    parts: ClassVar[Sequence[str]] = (
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
        "scheduler",
    )
    is_video: ClassVar[bool] = False

    def load_autoencoder(self, directory: Path, device: str) -> Any:
        from effllm.models.autoencoder import load_autoencoder

        return load_autoencoder(directory / "vae", device)

    def encode(self, autoencoder: Any, pixels: "Tensor") -> "Tensor":
        return autoencoder.encode(pixels[:, 0])

    def decode(self, autoencoder: Any, latents: "Tensor") -> "Tensor":
        return autoencoder.decode(latents)[:, None]

    def encode_texts(self, pipeline: Any, captions: list[str], tokens: int) -> Mapping[str, "Tensor"]:
        hidden, _, pooled, _ = pipeline.encode_prompt(
            prompt=captions,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=tokens,
        )
        return {"encoder_hidden_states": hidden, "pooled_projections": pooled}

    def size_step(self, directory: Path) -> tuple[int, int]:
        from effllm.models.checkpoint.files import CONFIG, read_object

        blocks = read_object(directory / "vae" / CONFIG, str(directory))["block_out_channels"]
        patch = read_object(directory / "transformer" / CONFIG, str(directory))["patch_size"]
        return int(2 ** (len(blocks) - 1) * patch), 1

    def patches(self, transformer: Any, shape: Sequence[int]) -> int:
        patch = transformer.config.patch_size
        return (shape[1] // patch) * (shape[2] // patch)

    def write_tiny(self, directory: Path, seed: int) -> None:
        from effllm.models.generators.tiny import write_tiny_sd3

        write_tiny_sd3(directory, seed)
