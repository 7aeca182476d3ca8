"""The dense feed-forward layer."""

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x), without biases (Shazeer 2020, eq. 6)."""

    def __init__(self, config: "EffConfig"):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, hidden] to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
