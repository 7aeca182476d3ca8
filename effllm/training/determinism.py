"""Kernels that give the same bits each time."""

import os

import torch


def be_deterministic() -> None:
    """Let this process use deterministic kernels only; call it before anything is multiplied on a GPU.

    The Trainer's `full_determinism` does this too, but it makes every launch of a kernel wait for its end
    (CUDA_LAUNCH_BLOCKING), gives cuBLAS workspaces of 16 KiB, and leaves on what fills each new tensor with NaN. No bit
    of the results needs that, and together it costs a GPU much of its speed.
    Source: "Reproducibility" in PyTorch's notes, and cuBLAS's "Results reproducibility".
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # of the module's own class
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
