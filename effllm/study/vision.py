"""What vision-language models need of the rest of a study; ValueError with the key, the value and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllm.fields import require
from effllm.models.sources import RandomSource
from effllm.models.vision_language.architecture import VisionLanguageArchitecture
from effllm.study.models import FinetunedSource

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.training.suites import FinetuningSuite


def check_tokenizers(study: Study) -> None:
    """Models of random weights that have a tokenizer name one of the study's."""
    for id, model in study.models.items():
        if isinstance(model.source, RandomSource) and model.source.tokenizer is not None:
            require(f"models.{id}.source.tokenizer", model.source.tokenizer, study.tokenizers)


def starts_from_random_weights(study: Study, model: str) -> bool:
    """Whether a fine-tuned model is one that the study itself trains whole from random weights, as a base of others."""
    source = study.models[model].source
    if not isinstance(source, FinetunedSource) or source.model not in study.models:
        return False
    is_whole = source.method in study.methods and study.methods[source.method].trains_whole_model
    return is_whole and isinstance(study.models[source.model].source, RandomSource)


def check_images(study: Study, where: str, suite: FinetuningSuite) -> None:
    """Images are read by models that can, one sample a sequence."""
    if not study.instructions[suite.instructions].has_images:
        if suite.vision is not None:
            raise ValueError(f"{where}.vision: {suite.instructions!r} has no images; leave the key out")
        return
    if suite.encoding.packing:
        raise ValueError(f"{where}.encoding.packing: samples with images are not packed; write false")
    for id in suite.models:
        shape = study.architecture_of(id)
        if shape is not None and not isinstance(shape, VisionLanguageArchitecture):
            raise ValueError(
                f"{where}.models: {id!r} is a {shape.model_type}, which does not read the images of "
                f"{suite.instructions!r}; name a vision-language model"
            )
