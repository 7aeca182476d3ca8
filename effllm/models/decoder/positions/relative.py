"""Relative positions (Shaw et al. 2018; T5)."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from effllm.fields import Dimension, Section
from effllm.models.decoder.positions.encoding import Position

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig
    from effllm.models.decoder.positions.layers import RelativeBias


class RelativeKeys(Section):
    """Keys of relative positions."""

    relative_attention_max_distance: Dimension = Field(
        default=128, description="relative: distances from here on share a bias."
    )


class Relative(Position):
    """A learned scalar per head and clipped distance is added to the attention score."""

    keys = RelativeKeys
    keys_in_every_spec = True
    uses_mask = False

    def bias(self, config: "EffConfig") -> "RelativeBias":
        from effllm.models.decoder.positions.layers import RelativeBias

        return RelativeBias(config)

    def layer_parameters(self, config: Any) -> int:
        return (config.relative_attention_max_distance + 1) * config.num_attention_heads
