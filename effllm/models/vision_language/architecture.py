"""Shapes of vision-language models of random weights, without torch."""

from typing import Literal

from pydantic import Field, model_validator

from effllm.fields import Dimension, Layers, PositiveFloat, Section
from effllm.models.architecture import TransformerShape, require_multiple, require_pairs


class VisionShape(Section):
    """What of a vision tower may be chosen."""

    hidden_size: Dimension = Field(description="Width.")
    intermediate_size: Dimension = Field(description="Width of the feed-forward layer.")
    num_hidden_layers: Layers = Field(description="Number of layers.")
    num_attention_heads: Dimension = Field(description="Number of heads.")
    image_size: Dimension = Field(
        description="Height and width of the images that it reads, in pixels; Qwen2.5-VL's tower reads any, and images "
        "are scaled to about this area."
    )
    patch_size: Dimension = Field(description="Height and width of a patch, in pixels.")
    initializer_range: PositiveFloat = Field(default=0.02, description="Standard deviation of initial weights.")

    @model_validator(mode="after")
    def _divides(self) -> "VisionShape":
        require_multiple("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        require_multiple("patch_size", self.patch_size, "image_size", self.image_size)
        return self


class VisionLanguageArchitecture(TransformerShape):
    """A language model, whose keys stand here, with a vision tower.

    LLaVA has Llama's layers behind CLIP's tower, Qwen2.5-VL and InternVL those of Qwen2. The latter two join 2 x 2
    patches to a token.
    """

    model_type: Literal["llava", "qwen2_5_vl", "internvl"] = Field(description="Family, as Transformers names it.")
    num_key_value_heads: Dimension = Field(description="Number of key and value heads.")
    rope_theta: PositiveFloat = Field(default=10000.0, description="Base of the rotary position embedding.")
    rms_norm_eps: PositiveFloat = Field(default=1e-6, description="Epsilon of RMSNorm.")
    tie_word_embeddings: bool = Field(default=False, description="Share the embedding with the output head.")
    vision: VisionShape = Field(description="The vision tower.")

    @property
    def saved_model_type(self) -> str:
        """That of the language model, which is what is quantized."""
        return "llama" if self.model_type == "llava" else "qwen2"

    @model_validator(mode="after")
    def _heads_divide(self) -> "VisionLanguageArchitecture":
        require_multiple("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        require_multiple(
            "num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads
        )
        require_pairs(self.hidden_size // self.num_attention_heads)
        if self.model_type != "llava":
            require_multiple("two patches", 2 * self.vision.patch_size, "vision.image_size", self.vision.image_size)
        return self
