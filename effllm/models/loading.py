"""Weights that were really loaded: Transformers fills the others at random, and only warns."""

from collections.abc import Collection, Mapping

from effllm.errors import CellFailure

_MOST_NAMES = 3


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
