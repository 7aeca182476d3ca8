"""Diffusion transformers from disk, whole or not at all."""

from pathlib import Path
from typing import Any

from effllm.models.dit.model import DiT
from effllm.models.loading import moved, reading, require_all_weights


def load_dit(checkpoint: Path, device: str) -> DiT:
    """The model in `checkpoint`, in evaluation; `UserError` for what cannot be read, as for causal models."""
    with reading(checkpoint):
        # With the loading information a pair, which its type does not say.
        loaded: Any = DiT.from_pretrained(
            checkpoint, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model, keys = loaded
    require_all_weights(keys)
    model.eval()
    return moved(model, device)
