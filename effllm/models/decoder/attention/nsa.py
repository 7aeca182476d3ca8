"""Native sparse attention (Yuan et al. 2025, arXiv 2502.11089)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from effllm.fields import Count, Dimension, Section
from effllm.models.architecture import require_multiple
from effllm.models.decoder.attention.variant import Attention
from effllm.models.terms import Layer

if TYPE_CHECKING:
    from torch import nn
    from transformers.cache_utils import Cache

    from effllm.models.decoder.config import EffConfig


class SparseKeys(Section):
    """Keys of NSA; windows, blocks and strides are in tokens, the `*_blocks` in blocks."""

    nsa_window: Dimension = Field(default=128, description="nsa: tokens of the sliding window.")
    nsa_compression_block: Dimension = Field(default=64, description="nsa: tokens of a compressed block.")
    nsa_compression_stride: Dimension = Field(default=32, description="nsa: tokens between compressed blocks.")
    nsa_selection_block: Dimension = Field(default=64, description="nsa: tokens of a selected block.")
    nsa_selected_blocks: Dimension = Field(default=4, description="nsa: blocks that a query attends to in full.")
    nsa_initial_blocks: Count = Field(default=1, description="nsa: of these, blocks at the start of the text.")
    nsa_local_blocks: Dimension = Field(default=2, description="nsa: of these, blocks up to the query.")


class NativeSparse(Attention):
    """NSA. `nsa_layer.py` has the layer, `nsa_branches.py` its three branches, `nsa_cache.py` its cache."""

    keys = SparseKeys
    keys_in_every_spec = True
    uses_mask = False
    uses_padding = True

    def key_value_heads(self, num_attention_heads: int) -> int:
        return 2

    @property
    def has_fixed_heads(self) -> bool:
        return False

    def check(self, shape: Any) -> None:
        super().check(shape)
        stride = shape.nsa_compression_stride
        require_multiple("nsa_compression_stride", stride, "nsa_compression_block", shape.nsa_compression_block)
        require_multiple("nsa_compression_stride", stride, "nsa_selection_block", shape.nsa_selection_block)
        forced = shape.nsa_initial_blocks + shape.nsa_local_blocks
        if shape.nsa_local_blocks < 1 or forced > shape.nsa_selected_blocks:
            raise ValueError(
                f"nsa_local_blocks {shape.nsa_local_blocks} must be at least 1, and with nsa_initial_blocks "
                f"{shape.nsa_initial_blocks} at most nsa_selected_blocks {shape.nsa_selected_blocks}: change one of "
                "them"
            )

    def build(self, config: "EffConfig", layer_idx: int) -> "nn.Module":
        from effllm.models.decoder.attention.nsa_layer import NativeSparseAttention

        return NativeSparseAttention(config, layer_idx)

    def prepare_cache(self, cache: "Cache", num_hidden_layers: int) -> None:
        from effllm.models.decoder.attention.nsa_cache import use_sparse_layers

        use_sparse_layers(cache, num_hidden_layers)

    def cost(self, config: Any) -> Layer:
        hidden, dim = config.hidden_size, config.head_dim
        width, shared = config.num_attention_heads * dim, config.num_key_value_heads * dim
        weights = 2 * hidden * width + 2 * hidden * 3 * shared + hidden * 3 * config.num_attention_heads
        block = config.nsa_compression_block
        compressors = 2 * (block * dim + block * dim * dim + dim * dim)
        total = weights + width + 6 * shared + 3 * config.num_attention_heads + compressors
        # Kept: query, context twice, the branches' keys and values, gates, and every token once per block that it is
        # in. What a chunk of queries holds while it is recomputed comes on top, and does not grow with the length.
        overlap = -(-block // config.nsa_compression_stride)
        saved = 3 * width + 6 * shared + 3 * config.num_attention_heads + 2 * shared * overlap
        mixer = SparseAttention(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=dim,
            window=config.nsa_window,
            block=block,
            stride=config.nsa_compression_stride,
            selection_block=config.nsa_selection_block,
            selected_blocks=config.nsa_selected_blocks,
        )
        return Layer(total, total, weights, saved, mixer)

    def flops_without_causality(self, config: Any, length: int) -> int:
        # Selection and window are masks over all keys.
        mixer = self.cost(config).mixer
        assert isinstance(mixer, SparseAttention)
        pairs = length * (mixer.blocks(length) + 2 * length)
        attention = 4 * mixer.heads * mixer.head_dim * pairs
        return attention + mixer.blocks(length) * mixer.compression_flops() + mixer.importance_flops(length)


@dataclass(frozen=True)
class SparseAttention:
    """NSA: per query the T / stride compressed blocks, the selected tokens, and the strip its window lies in.

    Causality is not halved, as for dense attention: a sequence counts all compressed blocks for every query, and the
    whole strip of 2 w - 1 keys that a block of w queries meets.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int
    block: int
    stride: int
    selection_block: int
    selected_blocks: int

    def blocks(self, tokens: int) -> int:
        """Compression blocks complete in `tokens` tokens."""
        return max(0, (tokens - self.block) // self.stride + 1)

    def compression_flops(self) -> int:
        """Making one compressed key and value in every kv head."""
        return 2 * self.kv_heads * 2 * (self.block + 1) * self.head_dim**2

    def importance_flops(self, tokens: int) -> int:
        """Adding the probabilities of compressed blocks up to those of the selection blocks that they lie in."""
        parts = self.selection_block // self.stride + self.block // self.stride - 1
        products = 0 if parts == 1 else self.kv_heads * tokens * -(-tokens // self.selection_block) * parts
        return 2 * products

    def selected_tokens(self, context: int) -> int:
        """Tokens of the selected blocks, whole blocks counted."""
        return self.selection_block * min(self.selected_blocks, -(-context // self.selection_block))

    def forward_flops(self, length: int) -> int:
        step = min(self.window, length)
        strips = -(-length // step) * step * (self.window - 1 + step)
        pairs = length * (self.blocks(length) + self.selected_tokens(length)) + strips
        return 4 * self.heads * self.head_dim * pairs + self.blocks(length) * self.compression_flops()

    def decoding_flops(self, context: int) -> int:
        keys = self.blocks(context) + self.selected_tokens(context) + self.window
        return 4 * self.heads * self.head_dim * keys + self.compression_flops() // self.stride

    def cache_elements(self, context: int) -> int:
        tokens = context + self.blocks(context) + min(context, self.block - 1) + min(context, self.window - 1)
        return 2 * self.kv_heads * self.head_dim * tokens
