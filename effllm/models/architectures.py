"""Shapes of the models that a study trains; the tokenizer, or the token stream, gives the vocabulary."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from effllm.fields import Dimension, PositiveFloat
from effllm.models.architecture import ModelShape, TransformerShape, require_multiple, require_pairs
from effllm.models.decoder.architecture import DecoderArchitecture


class LlamaArchitecture(TransformerShape):
    """A decoder of Transformers' Llama, Phi3 or Qwen2 classes."""

    model_type: Literal["llama", "phi3", "qwen2"] = Field(description="Family, as Transformers names it.")
    num_key_value_heads: Dimension = Field(description="Number of key and value heads.")
    rope_theta: PositiveFloat = Field(default=10000.0, description="Base of the rotary position embedding.")
    rms_norm_eps: Annotated[PositiveFloat, Field(le=1)] = Field(default=1e-6, description="Epsilon of RMSNorm.")
    tie_word_embeddings: bool = Field(default=True, description="Share the embedding with the output head.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "LlamaArchitecture":
        require_multiple("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        require_multiple(
            "num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads
        )
        require_pairs(self.hidden_size // self.num_attention_heads)
        return self


# rotary_pct of Transformers' GPTNeoXConfig, and of Pythia.
GPT_NEOX_ROTARY_SHARE = 0.25


class GptNeoxArchitecture(TransformerShape):
    """GPT-NeoX, the architecture of Pythia: rotary quarter heads, LayerNorm, GELU, parallel residual, untied head."""

    model_type: Literal["gpt_neox"] = Field(description="Family.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "GptNeoxArchitecture":
        require_multiple("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        require_pairs(int(self.hidden_size // self.num_attention_heads * GPT_NEOX_ROTARY_SHARE))
        return self


class MambaArchitecture(ModelShape):
    """Mamba (Gu and Dao 2023): selective state spaces, with Transformers' expansion 2, state 16 and tied head."""

    model_type: Literal["mamba"] = Field(description="Family.")
    initializer_range: Annotated[PositiveFloat, Field(le=10)] = Field(
        default=0.1, description="Standard deviation of initial weights."
    )


class Mamba2Architecture(ModelShape):
    """Mamba-2 (Dao and Gu 2024): state spaces with one decay for each head, as a product over chunks; tied head.

    The defaults are those of the published models. The heads are as many as `expand` times `hidden_size` makes.
    """

    model_type: Literal["mamba2"] = Field(description="Family.")
    expand: Dimension = Field(default=2, description="Width of the mixer in multiples of hidden_size.")
    head_dim: Dimension = Field(default=64, description="Width of a head.")
    state_size: Dimension = Field(default=128, description="Numbers of the state for each channel.")
    n_groups: Dimension = Field(default=1, description="Groups of heads, each with B and C of its own.")
    chunk_size: Dimension = Field(
        default=256, description="Tokens of a chunk: within one the scan is a product, between them a recurrence."
    )
    initializer_range: Annotated[PositiveFloat, Field(le=10)] = Field(
        default=0.1, description="Standard deviation of the initial embedding and input projections."
    )

    @property
    def num_heads(self) -> int:
        """Heads of the mixer."""
        return self.expand * self.hidden_size // self.head_dim

    @model_validator(mode="after")
    def _heads_divide(self) -> "Mamba2Architecture":
        require_multiple("head_dim", self.head_dim, "expand times hidden_size", self.expand * self.hidden_size)
        require_multiple("n_groups", self.n_groups, "the number of heads", self.num_heads)
        return self


class RwkvArchitecture(ModelShape):
    """RWKV version 4 (Peng et al. 2023), the one that Transformers has; untied head."""

    model_type: Literal["rwkv"] = Field(description="Family.")
    intermediate_size: Dimension | None = Field(
        default=None, description="Width of the channel mixing; null takes four times hidden_size."
    )
    max_position_embeddings: Dimension = Field(description="Longest sequence in training (context_length).")


Architecture = Annotated[
    LlamaArchitecture
    | DecoderArchitecture
    | GptNeoxArchitecture
    | MambaArchitecture
    | Mamba2Architecture
    | RwkvArchitecture,
    Field(discriminator="model_type"),
]
