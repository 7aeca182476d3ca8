"""Models of random weights, and how what is made from them still says so."""

from pathlib import Path

import torch

from effllm.models.families import model_config, random_model
from effllm.models.saving import save_causal_lm
from effllm.models.sources import RandomSource
from effllm.results.model import ModelSummary
from effllm.runtime.artifact import Artifact

RANDOM_WEIGHTS = "random weights"
"""Why no score of such a model means anything."""


def write_random_model(source: RandomSource, target: Path) -> None:
    """Draw the weights, on the GPU if there is one, where other numbers come out of the same seed; no tokenizer."""
    shape, vocab_size = source.architecture, source.architecture.vocab_size
    # The study demands it of random weights.
    assert vocab_size is not None
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = random_model(model_config(shape, vocab_size), source.seed)
    save_causal_lm(model.to(getattr(torch, source.dtype)), target)


def why_unscored(model: Artifact) -> str | None:
    """Why nothing made from this artifact of stage `model` or `pretrain` can be scored; None where it can."""
    return ModelSummary.read(model.directory).unscored if ModelSummary.FILE in model.manifest.payload else None
