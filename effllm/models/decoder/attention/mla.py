"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from effllm.fields import Dimension, Section
from effllm.models.decoder.attention.variant import Attention
from effllm.models.terms import DenseAttention, Layer

if TYPE_CHECKING:
    from torch import nn

    from effllm.models.decoder.config import EffConfig


class LatentKeys(Section):
    """Keys of MLA."""

    kv_lora_rank: Dimension | None = Field(
        default=None, description="mla: width of the cached latent; null takes hidden_size / 8."
    )
    qk_nope_head_dim: Dimension = Field(default=128, description="mla: unrotated width of queries and keys.")
    qk_rope_head_dim: Dimension = Field(default=64, description="mla: rotated width of queries and keys.")
    v_head_dim: Dimension = Field(default=128, description="mla: width of a head's values.")


class MultiHeadLatent(Attention):
    """MLA, as DeepSeek-V3 has it. The layer is in `mla_layer.py`."""

    keys = LatentKeys
    keys_in_every_spec = True
    transformers_types: ClassVar[Mapping[str, str]] = {"swiglu": "deepseek_v3"}

    def fill_in(self, shape: Any) -> None:
        if shape.kv_lora_rank is None:
            shape.kv_lora_rank = max(1, shape.hidden_size // 8)

    def rotary_dim(self, shape: Any) -> int:
        return shape.qk_rope_head_dim

    def build(self, config: "EffConfig", layer_idx: int) -> "nn.Module":
        from effllm.models.decoder.attention.mla_layer import MultiHeadLatentAttention

        return MultiHeadLatentAttention(config, layer_idx)

    def cost(self, config: Any) -> Layer:
        hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        key_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
        weights = hidden * heads * key_dim + hidden * (rank + config.qk_rope_head_dim)
        weights += rank * heads * (config.qk_nope_head_dim + config.v_head_dim) + hidden * heads * config.v_head_dim
        # Kept: the projection to the latent, the latent normalised and scaled; query, key, the expanded projection that
        # holds the value, and the context twice.
        saved = 3 * rank + config.qk_rope_head_dim
        saved += heads * (2 * key_dim + config.qk_nope_head_dim + 3 * config.v_head_dim)
        mixer = LatentAttention(
            heads=heads,
            key_dim=key_dim,
            value_dim=config.v_head_dim,
            cache_per_token=rank + config.qk_rope_head_dim,
            rank=rank,
            rope_dim=config.qk_rope_head_dim,
        )
        return Layer(weights + rank, weights + rank, weights, saved, mixer)

    def transformers_keys(self, config: Any) -> dict[str, Any]:
        return {
            "kv_lora_rank": config.kv_lora_rank,
            "q_lora_rank": None,
            "qk_nope_head_dim": config.qk_nope_head_dim,
            "qk_rope_head_dim": config.qk_rope_head_dim,
            "v_head_dim": config.v_head_dim,
            "rope_interleave": False,
            "first_k_dense_replace": config.num_hidden_layers,
            "num_mtp_layers": 0,
        }


@dataclass(frozen=True)
class LatentAttention(DenseAttention):
    """MLA: dense attention on expanded heads; a decoding step stays in the latent space of `rank` dimensions.

    Absorbing the up-projections costs a token as much as multiplying by them, which `matmul_parameters` counts.
    """

    rank: int = 0
    rope_dim: int = 0

    def decoding_flops(self, context: int) -> int:
        return 2 * self.heads * (2 * self.rank + self.rope_dim) * context

    def forward_flops(self, length: int) -> int:
        return 2 * self.heads * (self.key_dim + self.value_dim) * length**2
