"""Which layers of a model get an update, as a study says it, and what layers a family has."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from effllm.fields import Text, shortened

ALL_LINEAR = "all-linear"
# `model_type`s whose linear layers peft does not adapt all: some are read by fused kernels, past the adapter.
PARTLY_ADAPTED_MODEL_TYPES = frozenset({"mamba", "mamba2"})


def _targets(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(name, str) and name for name in value):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"{shortened(value)} is no choice of layers: write {ALL_LINEAR}, a list of names such as [q_proj, v_proj], "
            "or a pattern of whole names"
        )
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{shortened(value)} is no regular expression ({error}): correct it") from None
    if value != ALL_LINEAR and re.fullmatch(r"[\w-]+", value):
        raise ValueError(
            f"{shortened(value)} is a single name: write [{value}] for the layers whose names end so, or {ALL_LINEAR}"
        )
    return value


Targets = Annotated[
    Literal["all-linear"] | Text | Annotated[list[Text], Field(min_length=1)], BeforeValidator(_targets)
]
"""All linear layers but the output head, a pattern of whole names, or the last parts of names."""


def linear_layers(shape: Any) -> list[tuple[int, int, bool]] | None:
    """A decoder layer's linear modules as Transformers builds them, None for unknown families.

    Each is its inputs, its outputs, and whether it has a bias.
    """
    if shape.model_type not in ("llama", "mistral", "qwen2", "phi3"):
        return None
    hidden, inner = shape.hidden_size, shape.intermediate_size
    head_dim = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    width, shared = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    if shape.model_type == "phi3":
        return [
            (hidden, width + 2 * shared, False),
            (width, hidden, False),
            (hidden, 2 * inner, False),
            (inner, hidden, False),
        ]
    attention_bias, inner_bias = getattr(shape, "attention_bias", False), getattr(shape, "mlp_bias", False)
    projection_bias = shape.model_type == "qwen2" or attention_bias
    return [
        (hidden, width, projection_bias),
        (hidden, shared, projection_bias),
        (hidden, shared, projection_bias),
        (width, hidden, attention_bias),
        (hidden, inner, inner_bias),
        (hidden, inner, inner_bias),
        (inner, hidden, inner_bias),
    ]
