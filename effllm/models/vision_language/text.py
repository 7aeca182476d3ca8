"""The language model of a vision-language model, as formulas of causal language models read it. Without torch."""

from types import SimpleNamespace
from typing import Any

from effllm.models import costs
from effllm.models.text import text_config
from effllm.models.vision_language.parts import FAMILIES

# Qwen's text decoders go by names of their own.
_TEXTS = {"qwen2_5_vl_text": "qwen2", "qwen2_vl_text": "qwen2"}


def text_shape(config: Any) -> Any:
    """What the formulas of causal language models read of a vision-language model; None where they do not know it."""
    if config.model_type not in FAMILIES:
        return None
    text = text_config(config)
    # The whole model's configuration says whether its head is the embedding.
    is_tied = getattr(config, "tie_word_embeddings", False)
    named = {"model_type": _TEXTS.get(text.model_type, text.model_type), "tie_word_embeddings": is_tied}
    shape = SimpleNamespace(**text.to_dict() | named)
    return shape if costs.has_formulas(shape) else None
