"""The loss of a trained model on each window of a packed stream."""

from pathlib import Path

import numpy as np
import torch

from effllm.data import arrays
from effllm.data.tokens import Sequences
from effllm.errors import CellFailure
from effllm.models.loading import load_causal_lm, moved
from effllm.runtime.progress import Progress

# Windows whose losses are written together: what a killed run may have to read again.
_CHUNK_WINDOWS = 4096


def window_losses(checkpoint: Path, windows: Sequences, batch_size: int, scratch: Path) -> np.ndarray:
    """Mean negative log-likelihood of each window's tokens but the first, in nats, float64 (windows,).

    Every window is read by itself, as in training. Raises `CellFailure` (oom) where a batch does not fit.
    """
    model = moved(load_causal_lm(checkpoint), "cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    chunks = []
    with Progress(len(windows), unit="windows", label="reading") as bar:
        for first in range(0, len(windows), _CHUNK_WINDOWS):
            path = scratch / f"losses-{first:012d}.npy"
            numbers = range(first, min(first + _CHUNK_WINDOWS, len(windows)))
            if not path.exists():
                try:
                    arrays.save(path, _losses(model, windows, numbers, batch_size))
                except torch.OutOfMemoryError as error:
                    raise CellFailure("oom", str(error).splitlines()[0]) from None
            chunks.append(arrays.load(path))
            bar.update(len(numbers))
    return np.concatenate(chunks)


@torch.inference_mode()
def _losses(model: torch.nn.Module, windows: Sequences, numbers: range, batch_size: int) -> np.ndarray:
    found = []
    for start in range(0, len(numbers), batch_size):
        batch = torch.stack([torch.from_numpy(windows[number]) for number in numbers[start : start + batch_size]])
        device_batch = batch.to(next(model.parameters()).device)
        for logits, ids in zip(model(device_batch).logits, device_batch, strict=True):
            found.append(torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:]))
    return torch.stack(found).double().cpu().numpy()
