"""The feed-forward layer of the first transformers."""

from typing import TYPE_CHECKING, Any

from effllm.models.decoder.feed_forward.variant import FeedForward
from effllm.models.terms import Weights

if TYPE_CHECKING:
    from torch import nn

    from effllm.models.decoder.config import EffConfig


class TwoMatrices(FeedForward):
    """Two matrices with biases and GELU between them, of width intermediate_size."""

    def build(self, config: "EffConfig") -> "nn.Module":
        from effllm.models.decoder.feed_forward.gelu_layer import TwoMatrixLayer

        return TwoMatrixLayer(config)

    def cost(self, config: Any) -> Weights:
        weights = 2 * config.hidden_size * config.intermediate_size
        total = weights + config.intermediate_size + config.hidden_size
        # Kept: the inner layer before and after GELU.
        return Weights(total, total, weights, 2 * config.intermediate_size)
