"""Shapes of the models that a study trains; the tokenizer, or the token stream, gives the vocabulary."""

from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from effllm.study.base import Count, Dimension, Float, Layers, PositiveFloat, Section
from effllm.study.decoder_shape import (
    Attention,
    FeedForward,
    Position,
    check_decoder_shape,
    default_key_value_heads,
    require_multiple,
    require_pairs,
    saved_model_type,
)


class _Shape(Section):
    """What every family has."""

    hidden_size: Dimension = Field(description="Width of the residual stream.")
    num_hidden_layers: Layers = Field(description="Number of layers.")
    vocab_size: Dimension | None = Field(
        default=None, description="Rows of the embedding, at least the tokenizer's words; null takes just these."
    )
    initializer_range: Annotated[PositiveFloat, Field(le=10)] = Field(
        default=0.02, description="Standard deviation of initial weights."
    )

    @property
    def longest_sequence(self) -> int | None:
        """Tokens of the longest sequence; None where nothing limits it."""
        return getattr(self, "max_position_embeddings", None)

    @property
    def saved_model_type(self) -> str:
        """The `model_type` of the checkpoint that a run of this shape publishes."""
        return self.model_type  # type: ignore[attr-defined]

    def linear_in_features(self) -> dict[str, int]:
        """Input widths of the layers that a quantizer groups along, by name; empty for families it does not know."""
        return {}


class _Transformer(_Shape):
    """A shape with attention heads."""

    intermediate_size: Dimension = Field(description="Width of the feed-forward layer.")
    num_attention_heads: Dimension = Field(description="Number of query heads.")
    max_position_embeddings: Dimension = Field(description="Longest sequence in tokens.")

    def linear_in_features(self) -> dict[str, int]:
        return {
            "attention projections": self.hidden_size,
            "attention output": self.hidden_size,
            "feed-forward input": self.hidden_size,
            "feed-forward output": self.intermediate_size,
        }


class LlamaArchitecture(_Transformer):
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


class DecoderArchitecture(_Transformer):
    """This package's decoder: Qwen2.5's backbone around a choice of attention, position and feed-forward."""

    model_type: Literal["effllm"] = Field(description="Family.")
    attention: Attention = Field(default="gqa", description="mha, gqa, mqa, mla or nsa.")
    position: Position = Field(default="rope", description="rope, sinusoidal, learned, relative or none.")
    feed_forward: FeedForward = Field(default="swiglu", description="swiglu, or moe: a mixture of such experts.")
    num_key_value_heads: Dimension | None = Field(
        default=None, description="Key and value heads; null leaves the attention's own number (gqa and nsa: 2)."
    )
    head_dim: Dimension | None = Field(default=None, description="Width of a head; null divides hidden_size.")
    rope_theta: PositiveFloat = Field(default=1e6, description="Base of the rotary position embedding.")
    rms_norm_eps: Annotated[PositiveFloat, Field(le=1)] = Field(default=1e-6, description="Epsilon of RMSNorm.")
    tie_word_embeddings: bool = Field(default=True, description="Share the embedding with the output head.")
    relative_attention_max_distance: Dimension = Field(
        default=128, description="relative: distances from here on share a bias."
    )
    kv_lora_rank: Dimension | None = Field(
        default=None, description="mla: width of the cached latent; null takes hidden_size / 8."
    )
    qk_nope_head_dim: Dimension = Field(default=128, description="mla: unrotated width of queries and keys.")
    qk_rope_head_dim: Dimension = Field(default=64, description="mla: rotated width of queries and keys.")
    v_head_dim: Dimension = Field(default=128, description="mla: width of a head's values.")
    nsa_window: Dimension = Field(default=128, description="nsa: tokens of the sliding window.")
    nsa_compression_block: Dimension = Field(default=64, description="nsa: tokens of a compressed block.")
    nsa_compression_stride: Dimension = Field(default=32, description="nsa: tokens between compressed blocks.")
    nsa_selection_block: Dimension = Field(default=64, description="nsa: tokens of a selected block.")
    nsa_selected_blocks: Dimension = Field(default=4, description="nsa: blocks that a query attends to in full.")
    nsa_initial_blocks: Count = Field(default=1, description="nsa: of these, blocks at the start of the text.")
    nsa_local_blocks: Dimension = Field(default=2, description="nsa: of these, blocks up to the query.")
    num_experts: Dimension = Field(default=8, description="moe: number of experts.")
    num_experts_per_tok: Dimension = Field(default=2, description="moe: experts that a token is sent to.")
    moe_intermediate_size: Dimension | None = Field(
        default=None, description="moe: width of an expert; null takes intermediate_size."
    )
    router_aux_loss_coef: Annotated[Float, Field(ge=0)] = Field(
        default=0.01, description="moe: weight of the load-balancing loss."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "DecoderArchitecture":
        shape = SimpleNamespace(**dict(self))
        if shape.head_dim is None:
            require_multiple("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
            shape.head_dim = self.hidden_size // self.num_attention_heads
        shape.num_key_value_heads = self.num_key_value_heads or default_key_value_heads(
            self.attention, self.num_attention_heads
        )
        check_decoder_shape(shape)
        return self

    @property
    def saved_model_type(self) -> str:
        return saved_model_type(self.attention, self.position, self.feed_forward) or self.model_type

    def settings(self) -> dict[str, Any]:
        """The configuration's keys that were given; the others have the configuration's own defaults."""
        return self.model_dump(exclude={"model_type", "vocab_size"}, exclude_none=True)


# rotary_pct of Transformers' GPTNeoXConfig, and of Pythia.
GPT_NEOX_ROTARY_SHARE = 0.25


class GptNeoxArchitecture(_Transformer):
    """GPT-NeoX, the architecture of Pythia: rotary quarter heads, LayerNorm, GELU, parallel residual, untied head."""

    model_type: Literal["gpt_neox"] = Field(description="Family.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "GptNeoxArchitecture":
        require_multiple("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        require_pairs(int(self.hidden_size // self.num_attention_heads * GPT_NEOX_ROTARY_SHARE))
        return self


class MambaArchitecture(_Shape):
    """Mamba (Gu and Dao 2023): selective state spaces, with Transformers' expansion 2, state 16 and tied head."""

    model_type: Literal["mamba"] = Field(description="Family.")
    initializer_range: Annotated[PositiveFloat, Field(le=10)] = Field(
        default=0.1, description="Standard deviation of initial weights."
    )


class RwkvArchitecture(_Shape):
    """RWKV version 4 (Peng et al. 2023), the one that Transformers has; untied head."""

    model_type: Literal["rwkv"] = Field(description="Family.")
    intermediate_size: Dimension | None = Field(
        default=None, description="Width of the channel mixing; null takes four times hidden_size."
    )
    max_position_embeddings: Dimension = Field(description="Longest sequence in training (context_length).")


Architecture = Annotated[
    LlamaArchitecture | DecoderArchitecture | GptNeoxArchitecture | MambaArchitecture | RwkvArchitecture,
    Field(discriminator="model_type"),
]
