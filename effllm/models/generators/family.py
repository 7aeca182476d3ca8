"""What a family of pipelines says of itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from effllm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A linear layer with a bias: its widths, and of which of a sample's rows it makes products."""

    inputs: int
    outputs: int
    rows: Literal["patches", "texts", "one"]


class Family(ABC):
    """Base of the families.

    pipeline, transformer, autoencoder: classes of diffusers. parts: folders of a pipeline that are needed.
    joints: keys of the parts' configurations, two each, that must be equal; the latter may be a sum. is_video: whether
    latents have frames.
    """

    name: ClassVar[str]
    pipeline: ClassVar[str]
    transformer: ClassVar[str]
    autoencoder: ClassVar[str]
    parts: ClassVar[Sequence[str]]
    joints: ClassVar[Sequence[tuple[str, str]]]
    is_video: ClassVar[bool]

    def load_transformer(self, directory: Path, dtype: Any = None) -> "nn.Module":
        """The transformer of the pipeline in `directory`, on the CPU; `UserError` or `CellFailure` for one damaged."""
        import diffusers

        return load_part(getattr(diffusers, self.transformer), directory / "transformer", dtype)

    @abstractmethod
    def load_autoencoder(self, directory: Path, device: str) -> Any:
        """The autoencoder of the pipeline, in float32."""

    @abstractmethod
    def encode(self, autoencoder: Any, pixels: "Tensor") -> "Tensor":
        """Latents float32 [batch, channels, (frames,) height, width] of uint8 [batch, frames, 3, height, width].

        The mean of the posterior, as the transformer has learned it: shifted and scaled.
        """

    @abstractmethod
    def decode(self, autoencoder: Any, latents: "Tensor") -> "Tensor":
        """The way back: uint8 [batch, frames, 3, height, width]."""

    @abstractmethod
    def encode_texts(self, pipeline: Any, captions: list[str], tokens: int) -> Mapping[str, "Tensor"]:
        """What the transformer takes of captions, by the names of its arguments; [captions, ...] each."""

    @abstractmethod
    def size_step(self, directory: Path) -> tuple[int, int]:
        """Of what height and width of images, and of what frames less the first one, are to be multiples."""

    @abstractmethod
    def largest(self, directory: Path) -> tuple[int, int]:
        """The longest side of images, and the most frames, of which the transformer tells the places apart."""

    @abstractmethod
    def layers(self, config: Mapping[str, Any]) -> dict[str, Layer]:
        """The linear layers of a transformer of this configuration, by their names."""

    @abstractmethod
    def loose_parameters(self, config: Mapping[str, Any]) -> int:
        """Parameters that are in none of them."""

    @abstractmethod
    def score_products(self, config: Mapping[str, Any], patches: int, texts: int) -> int:
        """Products of a forward pass in attention itself: queries with keys, and weights with values."""

    @abstractmethod
    def rows(self, config: Mapping[str, Any], size: tuple[int, int], frames: int, text_tokens: int) -> tuple[int, int]:
        """Patches and texts of a sample of this width and height, by an autoencoder as it is published."""

    @abstractmethod
    def text_numbers(self, config: Mapping[str, Any], texts: int) -> int:
        """Numbers that the transformer takes of a caption of so many texts' rows."""

    @abstractmethod
    def write_tiny(self, directory: Path, seed: int) -> None:
        """A whole small pipeline, of which the autoencoder and the transformer have learned strokes."""

    @abstractmethod
    def patches(self, transformer: Any, shape: Sequence[int]) -> int:
        """Tokens that the transformer makes of latents of this shape, without the batch."""


def load_part(kind: Any, directory: Path, dtype: Any = None) -> Any:
    """A model of a pipeline, whole; `UserError` or `CellFailure` for what cannot be loaded so."""
    import torch

    from effllm.models.loading import reading, require_all_weights

    with reading(directory):
        model, keys = kind.from_pretrained(
            directory,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=dtype or torch.float32,
        )
    require_all_weights(keys)
    return model.requires_grad_(False)


def load_texts(family: Family, directory: Path, device: str) -> Any:
    """The pipeline with its text encoders alone; `UserError` for one whose tokenizer knows more than it."""
    import diffusers
    import torch

    from effllm.models.loading import reading

    with reading(directory):
        pipeline = getattr(diffusers, family.pipeline).from_pretrained(
            directory,
            transformer=None,
            vae=None,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.bfloat16 if device.startswith("cuda") else torch.float32,
        )
    for part in family.parts:
        if part.startswith("tokenizer"):
            encoder = part.replace("tokenizer", "text_encoder")
            _require_encoder(getattr(pipeline, part), getattr(pipeline, encoder), part, encoder)
    return pipeline.to(device)


def _require_encoder(tokenizer: Any, encoder: Any, part: str, encoder_part: str) -> None:
    words, places = encoder.config.vocab_size, getattr(encoder.config, "max_position_embeddings", None)
    remedy = "take both from one pipeline"
    if len(tokenizer) > words:
        raise UserError(f"{part} has {len(tokenizer):,} tokens and {encoder_part} {words:,}; {remedy}.")
    if places is not None and tokenizer.model_max_length > places:
        length = f"{tokenizer.model_max_length:.4g}"
        raise UserError(f"{part} has model_max_length {length} and {encoder_part} {places} positions; {remedy}.")
