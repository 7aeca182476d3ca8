"""Which modules of a vision-language model are its tower and its projector."""

import re
from collections.abc import Collection, Iterator
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
BEFORE_PATCHES = {"clip_vision_model": 1, "siglip_vision_model": 0, "internvl_vision": 1}
"""Towers of LLaVA and InternVL, and how many outputs stand before those of the patches."""
_COPY = re.compile(r"\.modules_to_save\.[^.]+")
# InternVL's tower is called by the names of its arguments, which peft's copies of modules do not take.
_PIECES = {"internvl": tuple(f"model.vision_tower.{name}" for name in ("embeddings", "encoder", "layernorm"))}


def part_of(model_type: str, name: str) -> str | None:
    """`tower` or `projector` for a parameter or module of a vision-language model; None for all others.

    `name` is that of the bare model. What peft trains of its modules are copies, and count as what they were; what
    stands beside a copy is no part any more.
    """
    tower, projector = _PARTS.get(model_type, ("", ""))
    name = _COPY.sub("", name)
    if ".original_module" in name:
        return None
    # Qwen's projector is within its tower.
    if projector and (name == projector or name.startswith(f"{projector}.")):
        return "projector"
    return "tower" if tower and (name == tower or name.startswith(f"{tower}.")) else None


def modules_of(model_type: str, parts: Collection[str]) -> list[str]:
    """The modules that hold the named parts, none within another."""
    tower, projector = _PARTS[model_type]
    towers = list(_PIECES.get(model_type, (tower,))) if "tower" in parts else []
    is_within = "tower" in parts and projector.startswith(f"{tower}.")
    return towers + ([projector] if "projector" in parts and not is_within else [])


def vision_parameters(model: "nn.Module", model_type: str) -> "Iterator[tuple[str, str, nn.Parameter]]":
    """Part, name and parameter of everything that is not the language model's."""
    for name, parameter in model.named_parameters():
        if (part := part_of(model_type, name)) is not None:
            yield part, name, parameter
