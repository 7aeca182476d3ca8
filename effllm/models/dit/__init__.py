"""Diffusion transformers whose attention and feed-forward are the decoder's.

    from effllm.models.dit import DiT, DiTConfig

makes Transformers' Auto classes know them. Neither is imported before, because the study reads the architecture's keys
from this package without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effllm.models.dit.config import DiTConfig
    from effllm.models.dit.model import DiT

__all__ = ["DiT", "DiTConfig"]


def __getattr__(name: str) -> Any:
    if name == "DiTConfig":
        from effllm.models.dit.config import DiTConfig

        return DiTConfig
    if name == "DiT":
        from effllm.models.dit.model import DiT

        return DiT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
