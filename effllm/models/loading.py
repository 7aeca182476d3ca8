"""Checkpoints of this study, loaded whole or not at all."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

# Registers the decoder: its variants that Transformers does not know are saved in its own format.
import effllm.models.decoder.model  # noqa: F401
from effllm.errors import CellFailure

_MOST_NAMES = 3


def load_causal_lm(checkpoint: Path, dtype: Any = "auto", **options: Any) -> PreTrainedModel:
    """The causal language model in `checkpoint`; raises `CellFailure` (unsupported) unless every weight was loaded.

    Transformers fills weights that a checkpoint lacks at random, and only warns. `options` are those of
    `from_pretrained`.
    """
    model, keys = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
    )
    require_all_weights(keys)
    return model


def require_all_weights(keys: Mapping[str, Collection[str]]) -> None:
    """Raise `CellFailure` (unsupported) unless checkpoint and model hold the same tensors.

    `keys` is what `from_pretrained(..., output_loading_info=True)` returns beside the model. A figure of a model with
    layers at random values would look like any other.
    """
    for what, names in (
        ("lacks", keys["missing_keys"]),
        ("holds what the model has not:", keys["unexpected_keys"]),
        ("holds in another shape", keys["mismatched_keys"]),
    ):
        if names:
            listed = ", ".join(sorted(map(str, names))[:_MOST_NAMES])
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            raise CellFailure("unsupported", f"the checkpoint {what} {listed}{more}")
