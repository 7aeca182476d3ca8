"""The feed-forward layer of two matrices."""

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig


class TwoMatrixLayer(nn.Module):
    """W_down gelu(W_up x + b_up) + b_down, with the approximation of GELU by tanh."""

    def __init__(self, config: "EffConfig"):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, hidden] to the same shape."""
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))
