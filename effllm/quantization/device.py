"""Where this machine runs models, and whether a precision runs there."""

import torch

from effllm.errors import CellFailure
from effllm.quantization.precision import Precision


def run_device() -> str:
    """Where this machine runs models."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def require_device(precision: Precision, device: str) -> None:
    """Raise `CellFailure` (unsupported) where the device cannot run the precision."""
    if reason := precision.refusal(device):
        raise CellFailure("unsupported", reason)
