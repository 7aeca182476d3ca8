"""Weights cast to a 16-bit type."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.models.loading import require_all_weights
from effllm.study.models import CastPrecision


def cast(source: Path, target: Path, settings: CastPrecision) -> None:
    """Write the model in `source` to `target` with its weights in `settings.dtype`.

    Raises `CellFailure` (nan) where a weight leaves the type's range: float16 ends at 65,504.
    """
    dtype = getattr(torch, settings.dtype)
    model, keys = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    require_all_weights(keys)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise CellFailure("nan", f"{name} has values beyond the range of {settings.dtype}")
    model.save_pretrained(target)
