"""The baseline of `training_step.py`: the decoder with grouped queries as a page of plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effllm.models.decoder import EffConfig


class Block(nn.Module):
    """Pre-norm attention with rotary positions, then SwiGLU."""

    def __init__(self, config: EffConfig):
        super().__init__()
        hidden, width = config.hidden_size, config.intermediate_size
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.dim = hidden // self.heads
        self.norms = nn.ModuleList([nn.RMSNorm(hidden, config.rms_norm_eps) for _ in range(2)])
        self.query = nn.Linear(hidden, hidden)
        self.key, self.value = (nn.Linear(hidden, self.groups * self.dim) for _ in range(2))
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.gate, self.up = (nn.Linear(hidden, width, bias=False) for _ in range(2))
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, length, hidden] to the same shape."""
        y = self.norms[0](x)
        query, key, value = (
            layer(y).unflatten(-1, (-1, self.dim)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        query, key = (_rotated(states, cos, sin) for states in (query, key))
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.out(context.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class BareDecoder(nn.Module):
    """Embedding, blocks, final norm, tied head and torch's cross-entropy: the mean loss of [batch, length] tokens."""

    def __init__(self, config: EffConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        nn.init.normal_(self.embedding.weight, std=config.initializer_range)
        dim = config.hidden_size // config.num_attention_heads
        inverse = 1e6 ** (-torch.arange(0, dim, 2) / dim)
        angles = torch.outer(torch.arange(config.max_position_embeddings), torch.cat((inverse, inverse)))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean over the positions that have a next token."""
        x, length = self.embedding(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), F.pad(tokens[:, 1:], (0, 1), value=-100).flatten())


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)
