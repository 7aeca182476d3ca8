"""What runs of diffusion need of the rest of a study; ValueError with the key, the value and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllm.data.images.settings import DigitsSource
from effllm.fields import require

if TYPE_CHECKING:
    from effllm.study.study import Study

_DIGITS = 10


def check_diffusion(study: Study) -> None:
    """Images are there, and are what the model generates."""
    for id, run in study.diffusion.items():
        where, shape = f"diffusion.{id}.architecture", run.architecture
        require(f"diffusion.{id}.images", run.images, study.images)
        images = study.images[run.images]
        for key, own, theirs in (
            ("image_size", shape.image_size, images.size),
            ("channels", shape.channels, images.channels),
        ):
            if own != theirs:
                raise ValueError(f"{where}.{key}: {own} is not the {theirs} of {run.images!r}: change one of them")
        if isinstance(images.source, DigitsSource) and shape.classes != _DIGITS:
            raise ValueError(f"{where}.classes: {shape.classes} is not the {_DIGITS} of digits: write {_DIGITS}")
