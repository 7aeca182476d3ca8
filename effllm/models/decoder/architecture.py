"""The decoder's shape: keys and defaults of the backbone and of every exchangeable part, each written down once.

The study, `EffConfig` and the cost formulas take them from here. Nothing here imports torch.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import Dimension, NameIn, PositiveFloat, Section
from effllm.models.architecture import TransformerShape, require_multiple
from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.component import Component
from effllm.models.decoder.feed_forward import FEED_FORWARD
from effllm.models.decoder.positions import POSITIONS


def components() -> list[Component]:
    """All exchangeable parts."""
    return [*ATTENTION.values(), *POSITIONS.values(), *FEED_FORWARD.values()]


def _keys_of_components() -> list[type[Section]]:
    return list(dict.fromkeys(part.keys for part in components() if part.keys is not Section))


def _names(registry: Mapping[str, Component]) -> str:
    *others, last = registry
    return f"{', '.join(others)} or {last}"


class DecoderArchitecture(TransformerShape, *_keys_of_components()):  # type: ignore[misc]  # the bases are known when this runs
    """This package's decoder: Qwen2.5's backbone around a choice of attention, position and feed-forward."""

    model_type: Literal["effllm"] = Field(description="Family.")
    attention: Annotated[str, NameIn(ATTENTION)] = Field(default="gqa", description=f"{_names(ATTENTION)}.")
    position: Annotated[str, NameIn(POSITIONS)] = Field(default="rope", description=f"{_names(POSITIONS)}.")
    feed_forward: Annotated[str, NameIn(FEED_FORWARD)] = Field(
        default="swiglu", description="swiglu, gelu, or moe: a mixture of experts that are swiglu."
    )
    num_key_value_heads: Dimension | None = Field(
        default=None, description="Key and value heads; null leaves the attention's own number (gqa and nsa: 2)."
    )
    head_dim: Dimension | None = Field(default=None, description="Width of a head; null divides hidden_size.")
    rms_norm_eps: Annotated[PositiveFloat, Field(le=1)] = Field(default=1e-6, description="Epsilon of RMSNorm.")
    tie_word_embeddings: bool = Field(default=True, description="Share the embedding with the output head.")

    @model_validator(mode="after")
    def _fits_together(self) -> "DecoderArchitecture":
        shape = SimpleNamespace(**dict(self))
        fill_in(shape)
        check(shape)
        return self

    @model_serializer(mode="wrap")
    def _without_keys_of_others(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        used = (ATTENTION[self.attention], POSITIONS[self.position], FEED_FORWARD[self.feed_forward])
        others = [part for part in components() if part not in used and not part.keys_in_every_spec]
        own = {key for part in used for key in part.keys.model_fields}
        left_out = {key for part in others for key in part.keys.model_fields} - own
        return {key: value for key, value in serialize(self).items() if key not in left_out}

    @property
    def saved_model_type(self) -> str:
        return transformers_type(self) or self.model_type

    def settings(self) -> dict[str, Any]:
        """The configuration's keys that were given; the others have the configuration's own defaults."""
        return self.model_dump(exclude={"model_type", "vocab_size"}, exclude_none=True)


def fill_in(shape: Any) -> None:
    """Set the keys of a shape that are None to what they mean; ValueError where hidden_size does not divide."""
    if shape.num_key_value_heads is None:
        shape.num_key_value_heads = ATTENTION[shape.attention].key_value_heads(shape.num_attention_heads)
    if shape.head_dim is None:
        require_multiple("num_attention_heads", shape.num_attention_heads, "hidden_size", shape.hidden_size)
        shape.head_dim = shape.hidden_size // shape.num_attention_heads
    for part in components():
        part.fill_in(shape)


def check(shape: Any) -> None:
    """Raise ValueError, with the key and the remedy, for a shape that does not divide. `shape` is filled in."""
    attention, position = ATTENTION[shape.attention], POSITIONS[shape.position]
    for part in (attention, position, FEED_FORWARD[shape.feed_forward]):
        part.check(shape)
    position.check_head(attention.rotary_dim(shape))


def transformers_type(shape: Any) -> str | None:
    """The `model_type` under which Transformers knows a decoder of this shape; None where it knows none."""
    if POSITIONS[shape.position].transformers_keys(shape) is None:
        return None
    return ATTENTION[shape.attention].transformers_types.get(shape.feed_forward)
