"""What a shape of our decoder must satisfy, known without torch: the study checks it before any stage starts."""

from typing import Any, Literal

Attention = Literal["mha", "gqa", "mqa", "mla", "nsa"]
Position = Literal["rope", "sinusoidal", "learned", "relative", "none"]
FeedForward = Literal["swiglu", "moe"]


def default_key_value_heads(attention: str, num_attention_heads: int) -> int:
    """Key and value heads where none are given: Qwen2.5 has 2 up to 3B."""
    return {"mqa": 1, "gqa": 2, "nsa": 2}.get(attention, num_attention_heads)


def check_decoder_shape(shape: Any) -> None:
    """Raise ValueError, with the key and the remedy, for a shape that does not divide.

    `shape` has the attributes of `effllm.models.decoder.EffConfig`, their defaults filled in.
    """
    _check_heads(shape)
    if shape.attention == "nsa":
        _check_nsa(shape)
    if shape.feed_forward == "moe" and not 1 <= shape.num_experts_per_tok <= shape.num_experts:
        raise ValueError(
            f"num_experts_per_tok {shape.num_experts_per_tok} is not between 1 and num_experts "
            f"{shape.num_experts}: change one of them"
        )


def saved_model_type(attention: str, position: str, feed_forward: str) -> str | None:
    """The `model_type` under which Transformers knows this decoder, or None if it knows none."""
    if position != "rope" or attention == "nsa":
        return None
    if attention == "mla":
        return "deepseek_v3" if feed_forward == "swiglu" else None
    return "qwen2" if feed_forward == "swiglu" else "qwen2_moe"


def require_multiple(divisor_key: str, divisor: int, key: str, value: int) -> None:
    """Raise ValueError unless `divisor` divides `value`."""
    if value % divisor:
        raise ValueError(f"{key} {value} is not a multiple of {divisor_key} {divisor}: change one of them")


def require_pairs(rotary_dimensions: int) -> None:
    """Raise ValueError unless rotary embeddings can rotate these dimensions of a head in pairs."""
    if rotary_dimensions < 2 or rotary_dimensions % 2:
        raise ValueError(
            f"rotary positions turn pairs of dimensions, and {rotary_dimensions} of each head are to be turned: choose "
            "hidden_size and num_attention_heads so that this number is even"
        )


def _check_heads(shape: Any) -> None:
    heads = shape.num_attention_heads
    required = {"mha": heads, "mla": heads, "mqa": 1}.get(shape.attention)
    if required is not None and shape.num_key_value_heads != required:
        raise ValueError(
            f"attention {shape.attention} has num_key_value_heads {required}, not {shape.num_key_value_heads}: "
            "leave the key out, or choose gqa"
        )
    require_multiple("num_key_value_heads", shape.num_key_value_heads, "num_attention_heads", heads)
    rotary = shape.qk_rope_head_dim if shape.attention == "mla" else shape.head_dim
    if shape.position == "rope":
        require_pairs(rotary)


def _check_nsa(shape: Any) -> None:
    stride = shape.nsa_compression_stride
    require_multiple("nsa_compression_stride", stride, "nsa_compression_block", shape.nsa_compression_block)
    require_multiple("nsa_compression_stride", stride, "nsa_selection_block", shape.nsa_selection_block)
    forced = shape.nsa_initial_blocks + shape.nsa_local_blocks
    if shape.nsa_local_blocks < 1 or forced > shape.nsa_selected_blocks:
        raise ValueError(
            f"nsa_local_blocks {shape.nsa_local_blocks} must be at least 1, and with nsa_initial_blocks "
            f"{shape.nsa_initial_blocks} at most nsa_selected_blocks {shape.nsa_selected_blocks}: change one of them"
        )
