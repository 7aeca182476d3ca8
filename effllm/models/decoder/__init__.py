"""The decoder whose attention, position and feed-forward can be exchanged, known to Transformers' Auto classes.

Its configuration is known once this package is imported, which is cheap; the model, which is not, once it is named
(`EffForCausalLM`) or `effllm.models.decoder.model` is imported.
"""

from typing import Any

from transformers import AutoConfig

from effllm.models.decoder.config import EffConfig

__all__ = ["EffConfig", "EffForCausalLM"]

AutoConfig.register(EffConfig.model_type, EffConfig)


def __getattr__(name: str) -> Any:
    if name != "EffForCausalLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from effllm.models.decoder.model import EffForCausalLM

    return EffForCausalLM
