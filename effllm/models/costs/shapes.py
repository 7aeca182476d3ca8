"""What the formulas read of a configuration, from a study's architecture: no library is imported for it.

Fills in what the families' configurations add of their own, as Transformers 5 and `EffConfig` have it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from effllm.models.decoder.architecture import DecoderArchitecture, fill_in

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from effllm.models.architectures import Architecture

    Shape = PreTrainedConfig | SimpleNamespace
    """What the formulas take: a configuration, or its terms alone."""


def shape_of(architecture: Architecture, vocab_size: int) -> SimpleNamespace:
    """The terms of a configuration that `parameter_count` and `training_flops` read."""
    if isinstance(architecture, DecoderArchitecture):
        shape = SimpleNamespace(**dict(architecture))
        fill_in(shape)
        shape.vocab_size = architecture.vocab_size or vocab_size
        return shape
    given: dict[str, Any] = {key: value for key, value in architecture.model_dump().items() if value is not None}
    return SimpleNamespace(**({"vocab_size": vocab_size} | _family_terms(given) | given))


def _family_terms(given: dict[str, Any]) -> dict[str, Any]:
    family, hidden = given["model_type"], given["hidden_size"]
    if family == "gpt_neox":
        return {"attention_bias": True, "tie_word_embeddings": False}
    if family == "mamba":
        inner = {"intermediate_size": 2 * hidden, "state_size": 16, "time_step_rank": -(-hidden // 16)}
        return inner | {"conv_kernel": 4, "use_conv_bias": True, "use_bias": False, "tie_word_embeddings": True}
    if family == "mamba2":
        inner = given["expand"] * hidden
        rest = {"conv_kernel": 4, "use_conv_bias": True, "use_bias": False, "tie_word_embeddings": True}
        return {"num_heads": inner // given["head_dim"]} | rest
    if family == "rwkv":
        return {"attention_hidden_size": hidden, "intermediate_size": 4 * hidden, "tie_word_embeddings": False}
    return {}
