"""What the shapes of all model families have in common, without torch: the study describes models by them."""

from dataclasses import make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import Field

from effllm.fields import Dimension, Layers, PositiveFloat, Section


class ModelShape(Section):
    """What every family has, beside its own name as `model_type`."""

    if TYPE_CHECKING:
        model_type: str

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
        return self.model_type

    def linear_in_features(self) -> dict[str, int]:
        """Input widths of the layers that a quantizer groups along, by name; empty for families it does not know."""
        return {}


class TransformerShape(ModelShape):
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


def optional_keys(shape: type[Section]) -> Any:
    """The keys of `shape` that have a default, as a dataclass, which Transformers' configurations are."""
    hints = get_type_hints(shape)
    fields = [(key, hints[key], field.default) for key, field in shape.model_fields.items() if not field.is_required()]
    return make_dataclass("_Keys", fields, kw_only=True)


def require_multiple(divisor_key: str, divisor: int, key: str, value: int) -> None:
    """Raise ValueError unless `divisor` divides `value`."""
    if value % divisor:
        raise ValueError(f"{key} {value} is not a multiple of {divisor_key} {divisor}: change one of them")


def require_pairs(rotary_dimensions: int) -> None:
    """Raise ValueError unless rotary embeddings can rotate these dimensions of a head in pairs."""
    if rotary_dimensions < 2 or rotary_dimensions % 2:
        raise ValueError(
            f"rotary positions turn pairs of dimensions, and {rotary_dimensions} of each head are to be turned: choose "
            "hidden_size and num_attention_heads so that this number is even"
        )
