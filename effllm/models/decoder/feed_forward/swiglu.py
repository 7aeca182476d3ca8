"""The dense feed-forward layer (Shazeer 2020)."""

from typing import TYPE_CHECKING, Any

from effllm.models.decoder.feed_forward.variant import FeedForward
from effllm.models.terms import Weights

if TYPE_CHECKING:
    from torch import nn

    from effllm.models.decoder.config import EffConfig


class Dense(FeedForward):
    """SwiGLU of width intermediate_size."""

    def build(self, config: "EffConfig") -> "nn.Module":
        from effllm.models.decoder.feed_forward.swiglu_layer import SwiGLU

        return SwiGLU(config)

    def cost(self, config: Any) -> Weights:
        weights = 3 * config.hidden_size * config.intermediate_size
        # Kept: gate, its silu, up, their product.
        return Weights(weights, weights, weights, 4 * config.intermediate_size)
