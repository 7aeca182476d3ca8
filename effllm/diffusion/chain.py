"""Denoising diffusion: the chain of steps, what is learned of it, and its bound.

Sources: Ho et al. 2020 (arXiv 2006.11239) for the chain and the noise as target; Nichol and Dhariwal 2021 (arXiv
2102.09672) for the learned variance, section 3.1, and for chains of fewer steps, section 4.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from effllm.diffusion.settings import Ddpm

# Values of a channel that the first step of the chain tells apart, -1 to 1: those of 8-bit images.
LEVELS = 256


@dataclass(frozen=True)
class Chain:
    """q(x_t | x_0) = N(sqrt(kept_t) x_0, 1 - kept_t), t from 0; `times` are what the model is told of the steps."""

    kept: np.ndarray
    times: np.ndarray
    _tables: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def kept_before(self) -> np.ndarray:
        """kept_{t-1}, 1 at the beginning."""
        return np.append(1.0, self.kept[:-1])

    @cached_property
    def betas(self) -> np.ndarray:
        """Variances of the steps."""
        return 1 - self.kept / self.kept_before

    @cached_property
    def log_variances(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the least and the largest variance of a step back: that of q(x_{t-1} | x_t, x_0), and beta.

        The first step back has no variance under q; it takes the second's.
        """
        posterior = self.betas * (1 - self.kept_before) / (1 - self.kept)
        posterior[0] = posterior[1] if len(posterior) > 1 else self.betas[0]
        return np.log(posterior), np.log(self.betas)

    @cached_property
    def mean_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean of q(x_{t-1} | x_t, x_0) is the first times x_0 plus the second times x_t."""
        of_start = np.sqrt(self.kept_before) * self.betas / (1 - self.kept)
        return of_start, np.sqrt(1 - self.betas) * (1 - self.kept_before) / (1 - self.kept)

    def respaced(self, steps: int) -> "Chain":
        """The same chain in fewer steps, evenly spaced, both ends among them."""
        index = np.linspace(0, len(self.kept) - 1, steps).round().astype(np.int64)
        return Chain(self.kept[index], self.times[index])

    def place(self, device: torch.device) -> None:
        """Have the series on a device, in float32: a compiled step does not bring them there."""
        series = {
            "kept": self.kept,
            "kept_before": self.kept_before,
            "least": self.log_variances[0],
            "largest": self.log_variances[1],
            "of_start": self.mean_weights[0],
            "of_noised": self.mean_weights[1],
        }
        placed = {name: torch.from_numpy(found.astype(np.float32)).to(device) for name, found in series.items()}
        self._tables[placed["kept"].device] = placed

    def at(self, name: str, steps: Tensor) -> Tensor:
        """A series of numbers at `steps` [batch], in float32 and of a shape that images broadcast against."""
        if steps.device not in self._tables:
            self.place(steps.device)
        return self._tables[steps.device][name][steps].view(-1, 1, 1, 1)


def linear_chain(settings: Ddpm) -> Chain:
    """The chain of a schedule of linear variances."""
    betas = np.linspace(settings.beta_first, settings.beta_last, settings.steps)
    return Chain(np.cumprod(1 - betas), np.arange(settings.steps))


class DdpmObjective:
    """Mean squared error of the predicted noise; where sigma is learned, its bound beside it."""

    def __init__(self, settings: Ddpm, learned_sigma: bool):
        self.chain = linear_chain(settings)
        self.learned_sigma = learned_sigma
        self.bound_weight = settings.bound_weight

    def noised(self, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t of clean images [batch, channels, size, size] and steps [batch]."""
        kept = self.chain.at("kept", times)
        return kept.sqrt() * images + (1 - kept).sqrt() * noise

    def model_time(self, times: Tensor) -> Tensor:
        """What the model is told: the step."""
        return times

    def losses(self, output: Tensor, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Of each image [batch]. The bound trains sigma alone: its mean takes the predicted noise as given."""
        if not self.learned_sigma:
            return (output - noise).square().flatten(1).mean(dim=1)
        predicted, fraction = output.chunk(2, dim=1)
        error = (predicted - noise).square().flatten(1).mean(dim=1)
        bound = self.bound(predicted.detach(), fraction, images, self.noised(images, noise, times), times)
        return error + self.bound_weight * bound

    def bound(self, predicted: Tensor, fraction: Tensor, images: Tensor, noised: Tensor, times: Tensor) -> Tensor:
        """Each image's term of the variational bound [batch], in bits a dimension."""
        chain = self.chain
        start = predicted_start(chain, predicted, noised, times)
        mean, log_variance = step_back(chain, start, noised, times), learned_variance(chain, fraction, times)
        true_mean, true_log_variance = step_back(chain, images, noised, times), chain.at("least", times)
        divergence = 0.5 * (
            log_variance
            - true_log_variance
            - 1
            + (true_log_variance - log_variance).exp()
            + (true_mean - mean).square() * (-log_variance).exp()
        )
        first = -log_likelihood(images, mean, log_variance)
        is_first = (times == 0).view(-1, 1, 1, 1)
        return torch.where(is_first, first, divergence).flatten(1).mean(dim=1) / math.log(2)


def predicted_start(chain: Chain, predicted: Tensor, noised: Tensor, steps: Tensor) -> Tensor:
    """x_0 that the predicted noise leaves of x_t."""
    kept = chain.at("kept", steps)
    return (noised - (1 - kept).sqrt() * predicted) / kept.sqrt()


def step_back(chain: Chain, start: Tensor, noised: Tensor, steps: Tensor) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0)."""
    return chain.at("of_start", steps) * start + chain.at("of_noised", steps) * noised


def learned_variance(chain: Chain, fraction: Tensor, steps: Tensor) -> Tensor:
    """log sigma^2: the model's output of -1 to 1 interpolates between the least and the largest."""
    least, largest = chain.at("least", steps), chain.at("largest", steps)
    return least + (fraction + 1) / 2 * (largest - least)


def log_likelihood(images: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the probability that a Gaussian gives the level of each value; the outer levels have the tails."""
    half = 1 / (LEVELS - 1)
    scale = (-0.5 * log_variance).exp()
    upper, lower = ((images - mean + edge) * scale for edge in (half, -half))
    log_above, log_below = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    inside = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    inside = inside.clamp(min=1e-12).log()
    inside = torch.where(images > 1 - half, log_below, inside)
    return torch.where(images < -1 + half, log_above, inside)
