"""Multi-head, grouped-query and multi-query attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.decoder.attention.variant import Attention
from effllm.models.terms import DenseAttention, Layer

if TYPE_CHECKING:
    from torch import nn

    from effllm.models.decoder.config import EffConfig


@dataclass(frozen=True)
class GroupedQuery(Attention):
    """MHA, GQA and MQA, which differ in their number of key and value heads; `shared` None is one per query head."""

    shared: int | None
    is_fixed: bool
    transformers_types: ClassVar[Mapping[str, str]] = {"swiglu": "qwen2", "moe": "qwen2_moe"}

    def key_value_heads(self, num_attention_heads: int) -> int:
        return self.shared or num_attention_heads

    @property
    def has_fixed_heads(self) -> bool:
        return self.is_fixed

    def build(self, config: "EffConfig", layer_idx: int) -> "nn.Module":
        from effllm.models.decoder.attention.core import GroupedQueryAttention

        return GroupedQueryAttention(config, layer_idx)

    def cost(self, config: Any) -> Layer:
        hidden = config.hidden_size
        width = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        weights = 2 * hidden * width + 2 * hidden * shared
        total = weights + width + 2 * shared
        # Kept: rotated query, rotated key, value, context, and the context in the output projection's order.
        mixer = DenseAttention(config.num_attention_heads, config.head_dim, config.head_dim, 2 * shared)
        return Layer(total, total, weights, 3 * width + 2 * shared, mixer)

    def transformers_keys(self, config: Any) -> dict[str, Any]:
        # Qwen2 computes head_dim unless the key is there.
        usual = config.head_dim == config.hidden_size // config.num_attention_heads
        return {} if usual else {"head_dim": config.head_dim}
