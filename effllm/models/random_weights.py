"""Models of random weights, and how what is made from them still says so."""

from pathlib import Path

import torch

from effllm.models.families import model_config, random_model
from effllm.models.loading import load_tokenizer, moved
from effllm.models.saving import save_causal_lm
from effllm.models.sources import RandomSource
from effllm.models.vision_language.architecture import VisionLanguageArchitecture
from effllm.results.model import ModelSummary
from effllm.runtime.artifact import Artifact

RANDOM_WEIGHTS = "random weights"
"""Why no score of such a model means anything."""


def write_random_model(source: RandomSource, target: Path, tokenizer: Path | None = None) -> None:
    """Draw the weights, on the GPU if there is one, where other numbers come out of the same seed.

    No tokenizer, but for a vision-language model, whose own is made of the one in `tokenizer`.
    """
    shape = source.architecture
    if isinstance(shape, VisionLanguageArchitecture):
        assert tokenizer is not None
        from effllm.models.vision_language.random_model import random_vision_language_model, save_image_processor

        words = load_tokenizer(tokenizer)
        save_causal_lm(moved(random_vision_language_model(shape, words, source.seed), _dtype(source)), target)
        words.save_pretrained(target)
        save_image_processor(shape, target)
        return
    vocab_size = shape.vocab_size
    # The study demands it of random weights.
    assert vocab_size is not None
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = random_model(model_config(shape, vocab_size), source.seed)
    save_causal_lm(moved(model, _dtype(source)), target)


def _dtype(source: RandomSource) -> torch.dtype:
    return getattr(torch, source.dtype)


def why_unscored(model: Artifact) -> str | None:
    """Why nothing made from this artifact of stage `model` or `pretrain` can be scored; None where it can."""
    return ModelSummary.read(model.directory).unscored if ModelSummary.FILE in model.manifest.payload else None
