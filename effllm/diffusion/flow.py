"""Rectified flow (Liu et al. 2022, arXiv 2209.03003)."""

from torch import Tensor

# Times from 0 to 1 are told to the model as steps of a chain of this length are.
TIME_SCALE = 1000.0


class FlowObjective:
    """x_t = (1 - t) x + t e, and the mean squared error of the predicted direction e - x."""

    def noised(self, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t of clean images or clips [batch, channels, ...] and times [batch] from 0 to 1."""
        share = times.view(-1, *(1,) * (images.ndim - 1))
        return (1 - share) * images + share * noise

    def model_time(self, times: Tensor) -> Tensor:
        """What the model is told."""
        return TIME_SCALE * times

    def losses(self, output: Tensor, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Of each image [batch]."""
        return (output - (noise - images)).square().flatten(1).mean(dim=1)
