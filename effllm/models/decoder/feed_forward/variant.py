"""What a feed-forward layer says of itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effllm.models.decoder.component import Component
from effllm.models.terms import Weights

if TYPE_CHECKING:
    from torch import nn

    from effllm.models.decoder.config import EffConfig


class FeedForward(Component, ABC):
    """One feed-forward layer: its keys, its layer and its cost."""

    @abstractmethod
    def build(self, config: "EffConfig") -> "nn.Module":
        """The layer: forward(hidden) returns [batch, length, hidden], and with a router also the router's logits."""

    @abstractmethod
    def cost(self, config: Any) -> Weights:
        """Parameters and saved activations of one layer."""

    def experts_per_token(self, shape: Mapping[str, Any]) -> int | None:
        """Experts that a token is sent to, of a shape's plain keys; None for a layer without experts."""
        return None

    def transformers_keys(self, config: Any) -> dict[str, Any]:
        """Its keys in Transformers' own configuration, where the attention names one for it."""
        return {}

    def is_absent(self, name: str) -> bool:
        """Whether a parameter of Transformers' model has no counterpart in ours, and is then zero."""
        return False
