"""The decoder whose attention, position and feed-forward can be exchanged.

    from effllm.models.decoder import EffConfig, EffForCausalLM

Transformers' Auto classes know the configuration once `EffConfig` is named, and the model once `EffForCausalLM` is.
Neither is imported before, because the study reads the keys of attention, position and feed-forward from this package.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig
    from effllm.models.decoder.model import EffForCausalLM

__all__ = ["EffConfig", "EffForCausalLM"]


def __getattr__(name: str) -> Any:
    if name == "EffConfig":
        from effllm.models.decoder.config import EffConfig

        return EffConfig
    if name == "EffForCausalLM":
        from effllm.models.decoder.model import EffForCausalLM

        return EffForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
