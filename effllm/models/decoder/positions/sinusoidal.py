"""Sinusoidal positions (Vaswani et al. 2017)."""

from typing import TYPE_CHECKING

from effllm.models.decoder.positions.encoding import Position

if TYPE_CHECKING:
    from torch import nn

    from effllm.models.decoder.config import EffConfig


class Sinusoidal(Position):
    """A fixed encoding is added to the scaled token embedding."""

    def embedding(self, config: "EffConfig") -> "nn.Module":
        from effllm.models.decoder.positions.layers import SinusoidalEmbedding

        return SinusoidalEmbedding()
