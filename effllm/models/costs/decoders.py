"""Descriptions of attention decoders: this package's, Llama, Mistral, Qwen2, Phi3 and GPT-NeoX."""

from typing import TYPE_CHECKING

from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.feed_forward import FEED_FORWARD
from effllm.models.decoder.positions import POSITIONS
from effllm.models.terms import DenseAttention, Description, Layer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from effllm.models.decoder.config import EffConfig


def describe_decoder(config: "EffConfig") -> Description:
    """This package's decoder, every attention, position and feed-forward."""
    hidden = config.hidden_size
    position = POSITIONS[config.position]
    attention = ATTENTION[config.attention].cost(config)
    feed_forward = FEED_FORWARD[config.feed_forward].cost(config)
    extra = 2 * hidden + position.layer_parameters(config)
    layer = Layer(
        parameters=attention.parameters + feed_forward.parameters + extra,
        active_parameters=attention.active_parameters + feed_forward.active_parameters + extra,
        matmul_parameters=attention.matmul_parameters + feed_forward.matmul_parameters,
        # Each norm keeps its input, the normalised input and its output.
        saved_elements=6 * hidden + attention.saved_elements + feed_forward.saved_elements,
        mixer=attention.mixer,
    )
    return _model(config, layer, positions=position.embedding_parameters(config), final_norm=hidden)


def describe_llama(config: "PreTrainedConfig") -> Description:
    """Llama, Mistral, Qwen2 and Phi3: RMSNorm, SwiGLU, grouped-query attention, biases where the family has them."""
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise ValueError(f"sliding_window {window} has no cost formulas: only attention to the whole past has")
    hidden = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    width, shared = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    attention = 2 * hidden * width + 2 * hidden * shared
    biases = width + 2 * shared if config.model_type == "qwen2" else 0
    if getattr(config, "attention_bias", False):
        biases = width + 2 * shared + hidden
    if getattr(config, "mlp_bias", False):
        biases += 2 * config.intermediate_size + hidden
    feed_forward = 3 * hidden * config.intermediate_size
    total = attention + feed_forward + biases + 2 * hidden
    layer = Layer(
        parameters=total,
        active_parameters=total,
        matmul_parameters=attention + feed_forward,
        saved_elements=6 * hidden + 3 * width + 2 * shared + 4 * config.intermediate_size,
        mixer=DenseAttention(config.num_attention_heads, head_dim, head_dim, 2 * shared),
    )
    return _model(config, layer, final_norm=hidden)


def describe_gpt_neox(config: "PreTrainedConfig") -> Description:
    """GPT-NeoX: LayerNorm with bias, biases everywhere, GELU, attention and feed-forward in parallel."""
    hidden, inner = config.hidden_size, config.intermediate_size
    matmul = 4 * hidden**2 + 2 * hidden * inner
    biases = (4 * hidden if config.attention_bias else 0) + inner + hidden
    total = matmul + biases + 4 * hidden
    head_dim = hidden // config.num_attention_heads
    layer = Layer(
        parameters=total,
        active_parameters=total,
        matmul_parameters=matmul,
        # One input and two norms of it; query, key, value and context twice; the inner layer before and after GELU.
        saved_elements=3 * hidden + 5 * hidden + 2 * inner,
        mixer=DenseAttention(config.num_attention_heads, head_dim, head_dim, 2 * hidden),
    )
    return _model(config, layer, final_norm=2 * hidden)


def _model(config: "PreTrainedConfig", layer: Layer, final_norm: int, positions: int = 0) -> Description:
    table = config.vocab_size * config.hidden_size
    return Description(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        layer=layer,
        embedding_parameters=table + positions,
        head_parameters=0 if config.tie_word_embeddings else table,
        other_parameters=final_norm,
    )
