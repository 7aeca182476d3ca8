"""Widths of a model's layers, from its config.json alone."""

from collections.abc import Mapping
from typing import Any

# Families whose decoder layers have these linear layers and no others.
_FAMILIES = frozenset({"llama", "mistral", "phi3", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl"})


def linear_in_features(config: Mapping[str, Any]) -> dict[str, int]:
    """Input widths of the linear layers by name, of a vision-language model those of its language model; empty for a
    family that is not known here.
    """
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    if str(config.get("model_type")).removesuffix("_text") not in _FAMILIES:
        return {}
    found = {"attention projections": config.get("hidden_size"), "feed-forward output": config.get("intermediate_size")}
    heads, width = config.get("num_attention_heads"), config.get("head_dim")
    if isinstance(heads, int) and isinstance(width, int):
        found["attention output"] = heads * width
    return {layer: width for layer, width in found.items() if isinstance(width, int)}
