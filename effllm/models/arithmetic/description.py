"""What a model's cost depends on, in numbers: the terms that each architecture fills in."""

from dataclasses import dataclass
from typing import Protocol


class Mixer(Protocol):
    """The part of a layer whose work and memory depend on the context, its weight products left out."""

    def forward_flops(self, length: int) -> int:
        """Matrix-product FLOPs over one whole sequence of `length` tokens."""

    def decoding_flops(self, context: int) -> int:
        """The same for one new token, when `context` tokens with it are visible."""

    def cache_elements(self, context: int) -> int:
        """Numbers kept per sequence after `context` tokens."""


@dataclass(frozen=True)
class Weights:
    """A layer or a part of one.

    parameters: all of its parameters; active_parameters: those that one token uses.
    matmul_parameters: the active weights that multiply every token once, at 2 FLOPs each.
    saved_elements: numbers per token that autograd keeps for the backward pass, with a fused attention kernel.
    """

    parameters: int
    active_parameters: int
    matmul_parameters: int
    saved_elements: int


@dataclass(frozen=True)
class Layer(Weights):
    """Weights with the part that mixes tokens."""

    mixer: Mixer


@dataclass(frozen=True)
class Description:
    """A causal language model of `num_layers` equal layers.

    embedding_parameters: the input tables: tokens, and learned positions.
    head_parameters: the output matrix if it is one of its own, else 0; it multiplies every token in either case.
    other_parameters: norms outside the layers.
    """

    hidden_size: int
    vocab_size: int
    num_layers: int
    layer: Layer
    embedding_parameters: int
    head_parameters: int
    other_parameters: int


@dataclass(frozen=True)
class DenseAttention:
    """Every query against every key: 2 * heads * (key dim + value dim) FLOPs per pair, causality not halved."""

    heads: int
    key_dim: int
    value_dim: int
    cache_per_token: int

    def forward_flops(self, length: int) -> int:
        return self.decoding_flops(length) * length

    def decoding_flops(self, context: int) -> int:
        return 2 * self.heads * (self.key_dim + self.value_dim) * context

    def cache_elements(self, context: int) -> int:
        return self.cache_per_token * context


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


@dataclass(frozen=True)
class RecurrentState:
    """A state of fixed size; `flops_per_token` are the matrix products of reading it, if there are any."""

    elements: int
    flops_per_token: int = 0

    def forward_flops(self, length: int) -> int:
        return self.flops_per_token * length

    def decoding_flops(self, context: int) -> int:
        return self.flops_per_token

    def cache_elements(self, context: int) -> int:
        return self.elements
