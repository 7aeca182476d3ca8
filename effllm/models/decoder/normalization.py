"""Root mean square normalisation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019), reduced in float32.

    Under autocast the result is in autocast's type: every product that reads it would cast it by itself, and keep its
    own copy for the backward pass.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in `size`, to the same shape; to the same type, or autocast's."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(dtype)
