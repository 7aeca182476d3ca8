"""What the fine-tuning of models of images and videos needs of the rest of a study; ValueError says what is amiss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllm.fields import require
from effllm.models.generators import FAMILIES
from effllm.models.generators.settings import TinyGenerator

if TYPE_CHECKING:
    from effllm.study.study import Study


def check_tuning(study: Study) -> None:
    """Captions, pipelines and methods are there, and clips are for models of videos."""
    for id, suite in study.tuning.items():
        where = f"tuning.{id}"
        require(f"{where}.captions", suite.captions, study.captions)
        for method in suite.methods:
            require(f"{where}.methods", method, study.methods)
        frames = study.captions[suite.captions].frames
        for model in suite.models:
            require(f"{where}.models", model, study.generators)
            source = study.generators[model].source
            if isinstance(source, TinyGenerator) and frames > 1 and not FAMILIES[source.family].is_video:
                raise ValueError(
                    f"{where}.models: {model!r} draws images and {suite.captions!r} are clips of {frames} frames: take "
                    "a model of videos, or captions with frames: 1"
                )
