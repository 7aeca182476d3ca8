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
