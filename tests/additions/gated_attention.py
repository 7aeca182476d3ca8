"""An attention variant: grouped-query attention whose output a low-rank gate scales."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from effllm.fields import Dimension, Section
from effllm.models.decoder.attention.gqa import GroupedQuery
from effllm.models.terms import Layer


class GatedKeys(Section):
    """Keys of the variant."""

    gate_dim: Dimension | None = Field(default=None, description="gated: width of the gate; null takes head_dim.")


class GatedQuery(GroupedQuery):
    """o_t = sigmoid(W_2 W_1 h_t) * GQA(h)_t."""

    keys = GatedKeys
    transformers_types: ClassVar[Mapping[str, str]] = {}

    def fill_in(self, shape: Any) -> None:
        if shape.gate_dim is None:
            shape.gate_dim = shape.head_dim

    def build(self, config: Any, layer_idx: int) -> Any:
        return _layer()(config, layer_idx)

    def cost(self, config: Any) -> Layer:
        base, gate = super().cost(config), 2 * config.hidden_size * config.gate_dim
        return Layer(
            parameters=base.parameters + gate,
            active_parameters=base.active_parameters + gate,
            matmul_parameters=base.matmul_parameters + gate,
            # Kept: the gate's inner vector, the gate and what it scales.
            saved_elements=base.saved_elements + config.gate_dim + 2 * config.hidden_size,
            mixer=base.mixer,
        )


@functools.cache
def _layer() -> type:
    from torch import nn

    from effllm.models.decoder.attention.core import GroupedQueryAttention

    class GatedAttention(GroupedQueryAttention):
        def __init__(self, config: Any, layer_idx: int):
            super().__init__(config, layer_idx)
            self.gate_down = nn.Linear(config.hidden_size, config.gate_dim, bias=False)
            self.gate_up = nn.Linear(config.gate_dim, config.hidden_size, bias=False)

        def forward(self, hidden: Any, sequence: Any, cache: Any) -> Any:
            return self.gate_up(self.gate_down(hidden)).sigmoid() * super().forward(hidden, sequence, cache)

    return GatedAttention
