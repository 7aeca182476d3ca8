"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), as DeepSeek-V3 has it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from effllm.models.decoder.attention.core import Sequence, dense_attention
from effllm.models.decoder.normalization import RMSNorm
from effllm.models.decoder.positions import POSITIONS

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig


class MultiHeadLatentAttention(nn.Module):
    """Keys and values of all heads are projected from one latent per token, and only that latent is cached.

    c_t = RMSNorm(W_DKV h_t)                                 (eq. 9)   kv_lora_rank
    k^C_t = W_UK c_t, v_t = W_UV c_t                         (10, 11)  per head qk_nope_head_dim, v_head_dim
    k^R_t = RoPE(W_KR h_t), shared by the heads              (15)      qk_rope_head_dim
    q_t = [q^C_t; RoPE(q^R_t)], from W_Q h_t                 (14, 16)  queries are not compressed here
    o_t = softmax(q_t . [k^C_j; k^R_j] / sqrt(d_nope + d_rope)) v_j    (18)

    The cache holds kv_lora_rank + qk_rope_head_dim numbers per token. A decoding step never expands them: W_UK is
    absorbed into the query and W_UV into the output (section 2.1.2), q^C . k^C = (W_UK^T q^C) . c and
    sum_j p_j v_j = W_UV sum_j p_j c_j, so that attention runs in the latent space with one shared key.
    Under positions other than RoPE the shared key k^R stays, unrotated, and the parameters are the same.
    No projection has a bias, as in DeepSeek-V3, but the output's where the configuration says so.
    """

    def __init__(self, config: "EffConfig", layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.rank = config.kv_lora_rank
        self.nope_dim = config.qk_nope_head_dim
        self.rope_dim = config.qk_rope_head_dim
        self.value_dim = config.v_head_dim
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * (self.nope_dim + self.rope_dim), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.rank + self.rope_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(self.rank, config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(self.rank, self.num_heads * (self.nope_dim + self.value_dim), bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.value_dim, config.hidden_size, bias=config.attention_output_bias)
        self.relative_bias = POSITIONS[config.position].bias(config)

    def forward(self, hidden: Tensor, sequence: Sequence, cache: Cache | None) -> Tensor:
        """[batch, length, hidden] to the same shape; new latents and shared keys go to the cache."""
        batch, length, _ = hidden.shape
        query = self.q_proj(hidden).view(batch, length, self.num_heads, -1).transpose(1, 2)
        query_nope, query_rope = query.split((self.nope_dim, self.rope_dim), dim=-1)
        latent, key_rope = self.kv_a_proj_with_mqa(hidden).split((self.rank, self.rope_dim), dim=-1)
        latent = self.kv_a_layernorm(latent)[:, None]
        query_rope = sequence.rotate(query_rope)
        key_rope = sequence.rotate(key_rope[:, None])
        if cache is not None:
            latent, key_rope = cache.update(latent, key_rope, self.layer_idx)
        # An adapter in the place of the projection has no weight that could be absorbed.
        absorbs = cache is not None and length == 1 and isinstance(self.kv_b_proj, nn.Linear)
        attend = self._absorbed if absorbs else self._expanded
        context = attend(query_nope, query_rope, latent, key_rope, sequence)
        return self.o_proj(context.transpose(1, 2).flatten(2))

    def _expanded(
        self, query_nope: Tensor, query_rope: Tensor, latent: Tensor, key_rope: Tensor, sequence: Sequence
    ) -> Tensor:
        """Keys and values of every head written out, for many queries at once."""
        batch, _, keys, _ = latent.shape
        expanded = self.kv_b_proj(latent).view(batch, keys, self.num_heads, -1).transpose(1, 2)
        key_nope, value = expanded.split((self.nope_dim, self.value_dim), dim=-1)
        query = torch.cat((query_nope, query_rope), dim=-1)
        key = torch.cat((key_nope, key_rope.expand(-1, self.num_heads, -1, -1)), dim=-1)
        return dense_attention(query, key, value, sequence, self.relative_bias, self.scale)

    def _absorbed(
        self, query_nope: Tensor, query_rope: Tensor, latent: Tensor, key_rope: Tensor, sequence: Sequence
    ) -> Tensor:
        """One query over the cached latents as they are: each is read for the scores and for the output."""
        weight = self.kv_b_proj.weight.view(self.num_heads, self.nope_dim + self.value_dim, self.rank)
        up_key, up_value = weight.split((self.nope_dim, self.value_dim), dim=1)
        latent, key_rope = latent[:, 0], key_rope[:, 0]
        query_latent = torch.einsum("bhd,hdr->bhr", query_nope[:, :, 0], up_key)
        scores = query_latent @ latent.transpose(1, 2) + query_rope[:, :, 0] @ key_rope.transpose(1, 2)
        scores = scores.float() * self.scale
        if self.relative_bias is not None:
            scores = scores + self.relative_bias.rows(sequence.first_position, 1, latent.shape[1])[:, 0]
        if sequence.key_mask is not None:
            scores = scores.masked_fill(~sequence.key_mask[:, None], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(dim=-1).to(latent.dtype) @ latent
        return torch.einsum("bhr,hdr->bhd", mixed, up_value)[:, :, None]
