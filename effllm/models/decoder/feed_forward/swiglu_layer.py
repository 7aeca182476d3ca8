"""The dense feed-forward layer."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effllm.models.decoder.kernels.choice import is_fused, is_named
from effllm.models.decoder.kernels.swiglu import Copies, fused_swiglu, objection_to_fused

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x), without biases (Shazeer 2020, eq. 6)."""

    def __init__(self, config: "EffConfig"):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self._copies = Copies()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, hidden] to the same shape."""
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        # Where there is nothing to choose from, nothing is recorded.
        has_choice = (x.device.type == "cuda" and torch.is_grad_enabled()) or is_named("feed_forward")
        if has_choice and is_fused("feed_forward", _objection(x, layers)):
            gate, up, down = (layer.weight for layer in layers)
            return fused_swiglu(x, (gate, up), (down,), self._copies)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _objection(x: Tensor, layers: tuple[nn.Linear, ...]) -> str | None:
    if any(type(layer) is not nn.Linear for layer in layers):
        return "a product is not a linear layer of its own"
    return objection_to_fused(x, tuple(layer.weight for layer in layers))
