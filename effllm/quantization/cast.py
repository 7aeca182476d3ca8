"""Weights cast to a 16-bit type."""

from pathlib import Path

import torch

from effllm.errors import CellFailure
from effllm.models.loading import load_causal_lm
from effllm.study.models import CastPrecision


def cast(source: Path, target: Path, settings: CastPrecision) -> None:
    """Write the model in `source` to `target` with its weights in `settings.dtype`.

    Raises `CellFailure` (nan) where a weight leaves the type's range: float16 ends at 65,504.
    """
    dtype = getattr(torch, settings.dtype)
    model = load_causal_lm(source, dtype)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise CellFailure("nan", f"{name} has values beyond the range of {settings.dtype}")
    model.save_pretrained(target)
