"""Descriptions of the attention-free models: Mamba, Mamba-2 and RWKV."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllm.models.terms import Description, Layer, RecurrentState

if TYPE_CHECKING:
    from transformers import Mamba2Config, MambaConfig, RwkvConfig


def describe_mamba(config: "MambaConfig") -> Description:
    """Mamba: in, x, dt and out projections; the scan's products with h are elementwise but its readout y = C h is one.

    The state is h, [inner, state], and the convolution's last inputs, [inner, kernel].
    """
    hidden, inner, state, rank = config.hidden_size, config.intermediate_size, config.state_size, config.time_step_rank
    # The configuration replaces the word `auto`, and None below, by numbers when it is made.
    assert isinstance(rank, int)
    matmul = 3 * hidden * inner + inner * (rank + 2 * state) + rank * inner
    convolution = inner * (config.conv_kernel + (1 if config.use_conv_bias else 0))
    biases = 2 * inner + hidden if config.use_bias else 0
    # dt bias, A, D and the norm.
    total = matmul + convolution + inner + inner * state + inner + biases + hidden
    layer = Layer(
        parameters=total,
        active_parameters=total,
        matmul_parameters=matmul,
        # Input, norm, both halves of the projection, convolution, delta, scan and gated output, B and C.
        saved_elements=2 * hidden + 6 * inner + rank + 2 * state,
        mixer=RecurrentState(elements=inner * (state + config.conv_kernel), flops_per_token=2 * inner * state),
    )
    return _model(config, layer, other=hidden)


@dataclass(frozen=True)
class ChunkedState:
    """The state of Mamba-2, [channels, state], read and written by products over chunks of the sequence.

    Within a chunk every token meets every other, causality not halved: C B for each group, its product with the values
    for each channel. Then one product writes the chunk's state and one reads the state before it; the step from one
    chunk's state to the next is elementwise. A part of a chunk costs as much as a whole one.
    """

    channels: int
    state: int
    groups: int
    chunk: int
    other_elements: int

    def forward_flops(self, length: int) -> int:
        within = 2 * self.chunk * (self.groups * self.state + self.channels)
        return -(-length // self.chunk) * self.chunk * (within + 4 * self.channels * self.state)

    def decoding_flops(self, context: int) -> int:
        return 2 * self.channels * self.state

    def cache_elements(self, context: int) -> int:
        return self.channels * self.state + self.other_elements


def describe_mamba2(config: "Mamba2Config") -> Description:
    """Mamba-2: one projection to gate, values, B, C and steps, a convolution of values, B and C, and one back.

    The state is h, [inner, state], and the convolution's last inputs, [inner and B and C, kernel].
    """
    hidden, heads, groups, state = config.hidden_size, config.num_heads, config.n_groups, config.state_size
    inner = config.expand * hidden
    mixed = inner + 2 * groups * state
    matmul = hidden * (inner + mixed + heads) + inner * hidden
    convolution = mixed * (config.conv_kernel + (1 if config.use_conv_bias else 0))
    biases = inner + mixed + heads + hidden if config.use_bias else 0
    # A, D and the bias of the steps; the norm before the projection back, and that of the layer.
    total = matmul + convolution + 3 * heads + inner + biases + hidden
    layer = Layer(
        parameters=total,
        active_parameters=total,
        matmul_parameters=matmul,
        # Input, norm, projection, convolution, scan, gated and normalised output, and the states of the chunks.
        saved_elements=2 * hidden + inner + 2 * mixed + heads + 3 * inner + inner * state // config.chunk_size,
        mixer=ChunkedState(inner, state, groups, config.chunk_size, other_elements=mixed * config.conv_kernel),
    )
    return _model(config, layer, other=hidden)


def describe_rwkv(config: "RwkvConfig") -> Description:
    """RWKV-4: four square projections of time mixing, three of channel mixing; WKV itself is elementwise.

    The state is five vectors per layer: the last input of both mixings, and WKV's numerator, denominator and maximum.
    """
    hidden, attention, inner = config.hidden_size, config.attention_hidden_size, config.intermediate_size
    assert attention is not None and inner is not None
    matmul = 4 * hidden * attention + hidden**2 + 2 * hidden * inner
    # time_decay and time_first, five mixing vectors, two LayerNorms.
    total = matmul + 2 * attention + 5 * hidden + 4 * hidden
    layer = Layer(
        parameters=total,
        active_parameters=total,
        matmul_parameters=matmul,
        # Two inputs and norms, five mixed inputs, k, v, r, WKV and its product; r, k, its square, value after.
        saved_elements=9 * hidden + 5 * attention + 2 * hidden + 2 * inner,
        mixer=RecurrentState(elements=2 * hidden + 3 * attention),
    )
    # A LayerNorm before the first layer and one after the last.
    return _model(config, layer, other=4 * hidden)


def _model(config: "MambaConfig | Mamba2Config | RwkvConfig", layer: Layer, other: int) -> Description:
    table = config.vocab_size * config.hidden_size
    return Description(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        layer=layer,
        embedding_parameters=table,
        head_parameters=0 if config.tie_word_embeddings else table,
        other_parameters=other,
    )
