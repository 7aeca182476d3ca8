"""How many requests go through a model at once: as many as memory holds, half as many where it ran out."""

import gc
from collections.abc import Callable
from typing import Any, Literal

import psutil
import torch

from effllm.models.text import text_config
from effllm.telemetry.sources.host import memory_limit_b

AUTO: Literal["auto"] = "auto"
# More requests at once make nothing faster, unless they are short.
_MOST_ROWS = 64
_ENOUGH_TOKENS = 16_384
# Of a GPU nearly all, less what fragments and what one request does not show; of a machine a quarter, since other jobs
# of the run share it.
_SHARE = {"cuda": 0.8, "cpu": 0.25}
_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)


def rows_that_fit(row_b: float, free_b: float, tokens: int) -> int:
    """How many requests of `tokens` tokens, `row_b` bytes each, `free_b` bytes hold: a power of two, and at least 1.

    A power of two, so that the same machine comes to the same number although its free memory is never quite the same.
    """
    most = max(_MOST_ROWS, _ENOUGH_TOKENS // max(1, tokens))
    fitting = int(min(most, free_b / max(1.0, row_b)))
    return 1 << max(0, fitting.bit_length() - 1)


def automatic_size(model: Any, tokens: int, run_one: Callable[[], object]) -> int:
    """How many requests of at most `tokens` tokens fit.

    On a GPU `run_one`, which handles the longest of them, is measured: weights aside, the peak of what it allocates is
    what one takes, logits and cache included. Elsewhere there is no such measure, and it is estimated.
    """
    if model.device.type == "cuda":
        try:
            row_b = _measured_b(model.device, run_one)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            row_b = float("inf")
        free_b = float(torch.cuda.mem_get_info(model.device)[0])
        # What torch holds and does not use at the moment is free as well.
        free_b += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    else:
        row_b = estimated_row_b(model.config, tokens, model.dtype)
        own_b = psutil.Process().memory_info().rss
        free_b = float(min(psutil.virtual_memory().available, memory_limit_b() - own_b))
    return rows_that_fit(row_b, free_b * _SHARE["cuda" if model.device.type == "cuda" else "cpu"], tokens)


def estimated_row_b(config: Any, tokens: int, dtype: torch.dtype) -> float:
    """Bytes that one request of `tokens` tokens takes besides the weights.

    Of each token: its logits and, in float32, two copies of them; keys and values of all layers, as wide as the model;
    in one layer at a time eight vectors as wide as the model and three as wide as its feed-forward layer.
    """
    shape = text_config(config)
    hidden = shape.hidden_size
    inner = getattr(shape, "intermediate_size", None) or 4 * hidden
    logits_b = shape.vocab_size * (dtype.itemsize + 2 * 4)
    return tokens * (logits_b + dtype.itemsize * (2 * shape.num_hidden_layers * hidden + 8 * hidden + 3 * inner))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python's or torch's says that memory ran out, on a GPU or elsewhere."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def clear_memory() -> None:
    """Give back what failed attempts left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _measured_b(device: torch.device, run: Callable[[], object]) -> float:
    # The first call also allocates what stays: workspaces of libraries.
    run()
    torch.cuda.synchronize(device)
    before_b = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before_b)
