"""What an attention variant says of itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.architecture import require_multiple
from effllm.models.decoder.component import Component
from effllm.models.terms import Layer

if TYPE_CHECKING:
    from torch import nn
    from transformers.cache_utils import Cache

    from effllm.models.decoder.config import EffConfig


class Attention(Component, ABC):
    """One attention: its keys, its layer, its cost, and what it is called in Transformers.

    transformers_types: `model_type` of the same decoder in Transformers, by feed-forward, where it has one.
    uses_mask: whether the layer reads `Sequence.mask`, which is of size length x keys.
    uses_padding: whether the layer reads `Sequence.padding`, and so takes padding at the ends only.
    """

    transformers_types: ClassVar[Mapping[str, str]] = {}
    uses_mask: ClassVar[bool] = True
    uses_padding: ClassVar[bool] = False

    def key_value_heads(self, num_attention_heads: int) -> int:
        """Key and value heads where num_key_value_heads is not given."""
        return num_attention_heads

    @property
    def has_fixed_heads(self) -> bool:
        """Whether any other number of key and value heads is refused."""
        return True

    def rotary_dim(self, shape: Any) -> int:
        """Dimensions of a head that rotary positions turn."""
        return shape.head_dim

    def check(self, shape: Any) -> None:
        heads, given = shape.num_attention_heads, shape.num_key_value_heads
        required = self.key_value_heads(heads)
        if self.has_fixed_heads and given != required:
            raise ValueError(
                f"attention {shape.attention} has num_key_value_heads {required}, not {given}: "
                "leave the key out, or choose gqa"
            )
        require_multiple("num_key_value_heads", given, "num_attention_heads", heads)

    @abstractmethod
    def build(self, config: "EffConfig", layer_idx: int) -> "nn.Module":
        """The layer: forward(hidden, sequence, cache) takes and returns [batch, length, hidden]."""

    def prepare_cache(self, cache: "Cache", num_hidden_layers: int) -> None:
        """Give an empty cache the layers that this attention needs; idempotent."""

    @abstractmethod
    def cost(self, config: Any) -> Layer:
        """Parameters, saved activations, FLOPs and cache of one layer, positions left out."""

    def flops_without_causality(self, config: Any, length: int) -> int:
        """Matrix-product FLOPs of the part that mixes `length` tokens that see each other, on one sequence."""
        return self.cost(config).mixer.forward_flops(length)

    def transformers_keys(self, config: Any) -> dict[str, Any]:
        """Its keys in Transformers' own configuration, where `transformers_types` names one."""
        return {}
