"""Descriptions of attention decoders: this package's, Llama, Mistral, Qwen2, Phi3 and GPT-NeoX."""

from typing import TYPE_CHECKING

from effllm.models.arithmetic.description import (
    DenseAttention,
    Description,
    LatentAttention,
    Layer,
    SparseAttention,
    Weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from effllm.models.decoder.config import EffConfig


def describe_decoder(config: "EffConfig") -> Description:
    """This package's decoder, every attention, position and feed-forward."""
    hidden = config.hidden_size
    attention = {"mla": _latent, "nsa": _sparse}.get(config.attention, _grouped)(config)
    bias = (config.relative_attention_max_distance + 1) * config.num_attention_heads
    extra = 2 * hidden + (bias if config.position == "relative" else 0)
    feed_forward = _mixture(config) if config.feed_forward == "moe" else _swiglu(hidden, config.intermediate_size)
    layer = Layer(
        parameters=attention.parameters + feed_forward.parameters + extra,
        active_parameters=attention.active_parameters + feed_forward.active_parameters + extra,
        matmul_parameters=attention.matmul_parameters + feed_forward.matmul_parameters,
        # Each norm keeps its input, the normalised input and its output.
        saved_elements=6 * hidden + attention.saved_elements + feed_forward.saved_elements,
        mixer=attention.mixer,
    )
    positions = config.max_position_embeddings * hidden if config.position == "learned" else 0
    return _model(config, layer, positions=positions, final_norm=hidden)


def describe_llama(config: "PreTrainedConfig") -> Description:
    """Llama, Mistral, Qwen2 and Phi3: RMSNorm, SwiGLU, grouped-query attention, biases where the family has them."""
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise ValueError(f"sliding_window {window} has no cost formulas: only attention to the whole past has")
    hidden = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    width, shared = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    attention = _projections(hidden, width, shared)
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


def _projections(hidden: int, width: int, shared: int) -> int:
    """Query and output of `width`, key and value of `shared`."""
    return 2 * hidden * width + 2 * hidden * shared


def _grouped(config: "EffConfig") -> Layer:
    width = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    weights = _projections(config.hidden_size, width, shared)
    total = weights + width + 2 * shared
    # Kept: rotated query, rotated key, value, context, and the context in the output projection's order.
    mixer = DenseAttention(config.num_attention_heads, config.head_dim, config.head_dim, 2 * shared)
    return Layer(total, total, weights, 3 * width + 2 * shared, mixer)


def _latent(config: "EffConfig") -> Layer:
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


def _sparse(config: "EffConfig") -> Layer:
    hidden, dim = config.hidden_size, config.head_dim
    width, shared = config.num_attention_heads * dim, config.num_key_value_heads * dim
    weights = 2 * hidden * width + 2 * hidden * 3 * shared + hidden * 3 * config.num_attention_heads
    block = config.nsa_compression_block
    compressors = 2 * (block * dim + block * dim * dim + dim * dim)
    total = weights + width + 6 * shared + 3 * config.num_attention_heads + compressors
    # Kept: query, context twice, the branches' keys and values, gates, and every token once per block that it is in.
    # What a chunk of queries holds while it is recomputed comes on top, and does not grow with the length.
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


def _swiglu(hidden: int, width: int) -> Weights:
    weights = 3 * hidden * width
    # Kept: gate, its silu, up, their product.
    return Weights(weights, weights, weights, 4 * width)


def _mixture(config: "EffConfig") -> Weights:
    hidden, chosen = config.hidden_size, config.num_experts_per_tok
    expert = 3 * hidden * config.moe_intermediate_size
    router = hidden * config.num_experts
    active = router + chosen * expert
    # Kept per chosen expert: its input, its four inner tensors, its output before the weighted sum.
    saved = chosen * (2 * hidden + 4 * config.moe_intermediate_size)
    return Weights(router + config.num_experts * expert, active, active, saved)
