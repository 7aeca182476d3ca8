"""Rotary positions (RoFormer, arXiv 2104.09864)."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from effllm.fields import PositiveFloat, Section
from effllm.models.architecture import require_pairs
from effllm.models.decoder.positions.encoding import Position

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.models.decoder.config import EffConfig


class RotaryKeys(Section):
    """Keys of rotary positions."""

    rope_theta: PositiveFloat = Field(default=1e6, description="Base of the rotary position embedding.")


class Rotary(Position):
    """Queries and keys are rotated by angles that grow with the position."""

    keys = RotaryKeys
    keys_in_every_spec = True

    def check_head(self, rotary_dim: int) -> None:
        require_pairs(rotary_dim)

    def angles(self, config: "EffConfig", position_ids: "Tensor", dim: int) -> "tuple[Tensor, Tensor]":
        from effllm.models.decoder.positions.layers import rotary_angles

        return rotary_angles(position_ids, dim, config.rope_theta)

    def transformers_keys(self, config: Any) -> dict[str, Any]:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
