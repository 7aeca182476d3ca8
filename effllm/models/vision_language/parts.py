"""Which modules of a vision-language model are its tower and its projector."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# By model_type: tower and projector, as they are called from the model's own class downwards.
_PARTS = {
    "llava": ("model.vision_tower", "model.multi_modal_projector"),
    "internvl": ("model.vision_tower", "model.multi_modal_projector"),
    "qwen2_5_vl": ("model.visual", "model.visual.merger"),
}
# The bases of QvQ share the names.
_PARTS["qwen2_vl"] = _PARTS["qwen2_5_vl"]
FAMILIES = tuple(_PARTS)


def part_of(model_type: str, name: str) -> str | None:
    """`tower` or `projector` for a parameter or module of a vision-language model; None for all others.

    `name` is that of the bare model.
    """
    tower, projector = _PARTS.get(model_type, ("", ""))
    # Qwen's projector is within its tower.
    if projector and (name == projector or name.startswith(f"{projector}.")):
        return "projector"
    return "tower" if tower and (name == tower or name.startswith(f"{tower}.")) else None


def vision_parameters(model: "nn.Module", model_type: str) -> "Iterator[tuple[str, str, nn.Parameter]]":
    """Part, name and parameter of everything that is not the language model's."""
    for name, parameter in model.named_parameters():
        if (part := part_of(model_type, name)) is not None:
            yield part, name, parameter
