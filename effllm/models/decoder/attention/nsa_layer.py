"""Native sparse attention (Yuan et al. 2025, arXiv 2502.11089): compression, selection and a sliding window."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.cache_utils import Cache

from effllm.models.decoder.attention import nsa_branches as branches
from effllm.models.decoder.attention.core import Sequence
from effllm.models.decoder.attention.nsa_bidirectional import bidirectional_attention
from effllm.models.decoder.attention.nsa_branches import KVContext
from effllm.models.decoder.attention.nsa_cache import SparseCacheLayer
from effllm.models.decoder.kernels.choice import is_fused, objection_to
from effllm.models.decoder.kernels.sparse import sparse_attention
from effllm.models.decoder.positions import POSITIONS
from effllm.models.decoder.positions.layers import rotate

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig

# Queries, over the batch, whose selected keys are in memory at once: on a CPU so few that they stay in its caches.
QUERIES_PER_CHUNK = {"cpu": 256, "cuda": 4096}


class Compressor(nn.Module):
    """phi of eq. 7: a block of l tokens to one, W_2 gelu(W_1 [x_1 + e_1; ...; x_l + e_l]).

    e is the intra-block position encoding. Biases are left out: W_1 e is one already, and one of W_2 would shift all
    compressed keys alike, which softmax cannot see. The heads share phi.
    """

    def __init__(self, block: int, head_dim: int):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(block, head_dim))
        self.up_proj = nn.Linear(block * head_dim, head_dim, bias=False)
        self.down_proj = nn.Linear(head_dim, head_dim, bias=False)

    def draw_parameters(self, std: float) -> None:
        """Draw the intra-block positions."""
        init.normal_(self.positions, mean=0.0, std=std)

    def forward(self, blocks: Tensor) -> Tensor:
        """[..., l, d] to [..., d]."""
        return self.down_proj(F.gelu(self.up_proj((blocks + self.positions).flatten(-2))))


class NativeSparseAttention(nn.Module):
    """o_t = sum over the branches c of g_t^c Attention(q_t, K_t^c, V_t^c), g = sigmoid(W_g h_t)     (eq. 5)

    compression: k~_i = phi(k_{id+1 : id+l}) for the blocks that end by t                            (eq. 7)
    selection: p_t = softmax(q_t . k~ / sqrt(d)) scores the selection blocks by overlap (eq. 8, 9), summed over the
        query heads of a group (eq. 10); the n best, the first and the last blocks always among them, are attended to
        with their own tokens (eq. 11, 12)
    window: the last w tokens                                                                      (section 3.3.3)

    Every branch has keys and values of its own, and each head its three gates. Compressed keys are made from unrotated
    keys; under RoPE they are rotated to the position of their block's last token, and a relative bias takes the same
    position. With left padding, blocks count from the row's first real token.

    Scores computed per query and head: T / d + n l' + 2 w, where dense attention has T. Nothing of size T x T exists:
    queries go through in chunks that are recomputed in the backward pass.

    Where the sequence is not causal, `nsa_bidirectional` says what a query sees.
    """

    def __init__(self, config: "EffConfig", layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.config = config
        self.shape = branches.SparseShape(
            window=config.nsa_window,
            block=config.nsa_compression_block,
            stride=config.nsa_compression_stride,
            selection_block=config.nsa_selection_block,
            selected_blocks=config.nsa_selected_blocks,
            initial_blocks=config.nsa_initial_blocks,
            local_blocks=config.nsa_local_blocks,
        )
        width = self.heads * self.head_dim
        shared = self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, 3 * shared, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, 3 * shared, bias=True)
        self.gate_proj = nn.Linear(config.hidden_size, 3 * self.heads, bias=True)
        self.key_compressor = Compressor(self.shape.block, self.head_dim)
        self.value_compressor = Compressor(self.shape.block, self.head_dim)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_output_bias)
        self.relative_bias = POSITIONS[config.position].bias(config)

    def forward(self, hidden: Tensor, sequence: Sequence, cache: Cache | None) -> Tensor:
        """[batch, length, hidden] to the same shape; the branches' keys and values go to a `SparseCacheLayer`."""
        batch, length, _ = hidden.shape
        query = sequence.rotate(self.q_proj(hidden).view(batch, length, self.heads, -1).transpose(1, 2))
        keys = self.k_proj(hidden).view(batch, length, 3 * self.kv_heads, -1).transpose(1, 2).chunk(3, dim=1)
        values = self.v_proj(hidden).view(batch, length, 3 * self.kv_heads, -1).transpose(1, 2).chunk(3, dim=1)
        gates = self.gate_proj(hidden).sigmoid().view(batch, length, self.heads, 3).transpose(1, 2)
        raw_key, selection_key, window_key = keys[0], sequence.rotate(keys[1]), sequence.rotate(keys[2])
        raw_value, selection_value, window_value = values

        start = sequence.position_ids.new_zeros(1) if sequence.padding is None else sequence.padding
        layer = None if cache is None else cache.layers[self.layer_idx]
        assert layer is None or isinstance(layer, SparseCacheLayer)
        compressed_key, compressed_value = self._compress(raw_key, raw_value, sequence, start, layer)
        if layer is not None:
            selection_key, selection_value = layer.update(selection_key, selection_value)
            window_key = layer.extend("window_keys", window_key, self.shape.window - 1)
            window_value = layer.extend("window_values", window_value, self.shape.window - 1)
        # One row per token, so that a selected token is one row to fetch.
        past = KVContext(
            compressed_key, compressed_value, selection_key.contiguous(), selection_value.contiguous(), start
        )
        if sequence.causal:
            context = self._attend(query, gates, past, window_key, window_value, sequence.first_position)
        else:
            assert cache is None and sequence.padding is None and self.relative_bias is None
            context = bidirectional_attention(query, gates, past, window_key, window_value, self.shape)
        return self.o_proj(context.transpose(1, 2).flatten(2))

    def _compress(
        self, key: Tensor, value: Tensor, sequence: Sequence, start: Tensor, layer: SparseCacheLayer | None
    ) -> tuple[Tensor, Tensor]:
        """Compressed keys and values, [batch, kv heads, blocks, head dim], with the cached blocks first.

        A row with padding has fewer complete blocks; its last entries are made of wrong tokens. No query of the row may
        see them, and a cache writes them anew when they are complete.
        """
        block, stride = self.shape.block, self.shape.stride
        first, end = sequence.first_position, sequence.first_position + key.shape[2]
        complete = branches.block_count(end, block, stride)
        before = branches.block_count(first, block, stride)
        new = complete - before
        if first and sequence.padding is not None:
            # Rows complete their blocks at different steps: make room for as many as any row could.
            new = -(-(end - first) // stride)
        if layer is None:
            seen, done = 0, torch.zeros_like(start)
        else:
            key = layer.extend("tail_keys", key, block - 1)
            value = layer.extend("tail_values", value, block - 1)
            seen = end - key.shape[2]
            done = ((first - start - block).div(stride, rounding_mode="floor") + 1).clamp(min=0)
        index = done[:, None] + torch.arange(new, device=key.device)
        tokens = start[:, None, None] + index[..., None] * stride + torch.arange(block, device=key.device) - seen
        lies_in_order = layer is None and sequence.padding is None and stride == block
        compressed = []
        for states, compressor in ((key, self.key_compressor), (value, self.value_compressor)):
            if lies_in_order:
                blocks = states[:, :, : new * block]
            else:
                blocks = branches.take_tokens(states, tokens.clamp(0, states.shape[2] - 1).flatten(1))
            compressed.append(compressor(blocks.unflatten(2, (new, block))))
        ends = index * stride + block - 1
        angles = POSITIONS[self.config.position].angles(self.config, ends, self.head_dim)
        if angles is not None:
            compressed[0] = rotate(compressed[0], angles)
        if layer is not None:
            index, capacity = index.expand(key.shape[0], -1), before + new
            names = ("compressed_keys", "compressed_values")
            pairs = zip(names, compressed, strict=True)
            compressed = [layer.write_compressed(name, states, index, capacity) for name, states in pairs]
        return compressed[0][:, :, :complete], compressed[1][:, :, :complete]

    def _attend(
        self,
        query: Tensor,
        gates: Tensor,
        past: KVContext,
        window_key: Tensor,
        window_value: Tensor,
        first: int,
    ) -> Tensor:
        """The gated sum of the branches, [batch, heads, length, head dim], a chunk of queries at a time."""
        if is_fused("nsa", self._objection_to_kernels(query, past, window_key, first)):
            return self._attend_by_kernels(query, gates, past, window_key, window_value)
        length, window = query.shape[2], self.shape.window
        context = window_key.shape[2] - length
        chunk = max(1, QUERIES_PER_CHUNK[query.device.type] // query.shape[0] // window) * window
        recomputes = length > chunk and torch.is_grad_enabled()
        if recomputes:
            past = past.widened()
        outputs = []
        for begin in range(0, length, chunk):
            end = min(begin + chunk, length)
            left = max(0, context + begin - window + 1)
            arguments = (
                first + begin,
                query[:, :, begin:end],
                gates[:, :, begin:end],
                past.until(first + end, self.shape),
                window_key[:, :, left : context + end],
                window_value[:, :, left : context + end],
            )
            if recomputes:
                outputs.append(checkpoint(self._chunk, *arguments, use_reentrant=False))
            else:
                outputs.append(self._chunk(*arguments))
        return torch.cat(outputs, dim=2)

    def _objection_to_kernels(self, query: Tensor, past: KVContext, window_key: Tensor, first: int) -> str | None:
        """Why the branches cannot go by fused kernels; None where they can."""
        size = self.shape.selection_block
        if objection := objection_to(query, needs=8):
            return objection
        if self.relative_bias is not None:
            return "positions are relative"
        if first or window_key.shape[2] != query.shape[2] or past.key.shape[2] != query.shape[2]:
            return "there are cached keys"
        if len(past.start) > 1:
            return "the batch is padded"
        if size < 16 or size > 128 or size & (size - 1):
            return f"nsa_selection_block {size} is not 16, 32, 64 or 128"
        return None

    def _attend_by_kernels(
        self, query: Tensor, gates: Tensor, past: KVContext, window_key: Tensor, window_value: Tensor
    ) -> Tensor:
        shape, positions, dtype = self.shape, past.positions(0, query.shape[2]), query.dtype
        return sparse_attention(
            query,
            gates.to(dtype),
            (past.compressed_key.to(dtype), past.compressed_value.to(dtype)),
            (past.key.to(dtype), past.value.to(dtype)),
            (window_key.to(dtype), window_value.to(dtype)),
            select=lambda importance: branches.select_blocks(importance, positions, shape),
            stride=shape.stride,
            block=shape.block,
            selection_block=shape.selection_block,
            window=shape.window,
        )

    def _chunk(
        self,
        first: int,
        query: Tensor,
        gates: Tensor,
        past: KVContext,
        window_key: Tensor,
        window_value: Tensor,
    ) -> Tensor:
        bias = self.relative_bias
        compressed, importance = branches.compressed_attention(query, past, first, self.shape, bias)
        blocks = branches.select_blocks(importance, past.positions(first, query.shape[2]), self.shape)
        selected = branches.selected_attention(query, past, blocks, first, self.shape, bias)
        local = branches.window_attention(query, window_key, window_value, past.start, first, self.shape, bias)
        gate = gates.unbind(dim=-1)
        return gate[0][..., None] * compressed + gate[1][..., None] * selected + gate[2][..., None] * local
