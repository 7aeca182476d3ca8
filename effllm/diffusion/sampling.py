"""Images from noise: DDIM (Song et al. 2020), the chain of DDPM, and Euler's steps along a flow.

Guidance is classifier-free (Ho and Salimans 2022): o + w (o_label - o) of the outputs with a label and with none, on
all channels; a learned sigma stays that of the label.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from effllm.diffusion.chain import Chain, learned_variance, linear_chain, predicted_start, step_back
from effllm.diffusion.draws import sampling_noise
from effllm.diffusion.flow import TIME_SCALE
from effllm.diffusion.settings import Ddpm, Flow, Sampler

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The model: noised images [batch, channels, size, size], times [batch], labels [batch]."""


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    objective: Ddpm | Flow,
    sampler: Sampler,
    labels: Tensor,
    no_label: int,
    seed: int,
    samples: Sequence[int],
    shape: Sequence[int],
) -> Tensor:
    """Images [labels, *shape] on the labels' device; what is drawn depends on `seed` and each one's number alone."""
    images = sampling_noise(seed, 0, samples, shape).to(labels.device)

    def guided(noised: Tensor, time: float) -> Tensor:
        times = torch.full((len(labels),), time, device=labels.device)
        if sampler.guidance == 1:
            return denoiser(noised, times, labels).float()
        both = torch.cat((labels, torch.full_like(labels, no_label)))
        output, unlabelled = denoiser(noised.repeat(2, 1, 1, 1), times.repeat(2), both).float().chunk(2)
        channels = shape[0]
        change = output[:, :channels] - unlabelled[:, :channels]
        return torch.cat((unlabelled[:, :channels] + sampler.guidance * change, output[:, channels:]), dim=1)

    if isinstance(objective, Flow):
        return _euler(guided, sampler, images)
    chain = linear_chain(objective).respaced(sampler.steps)
    if sampler.kind == "ddim":
        return _ddim(guided, chain, sampler.clip, images)
    drawn = lambda step: sampling_noise(seed, step, samples, shape).to(labels.device)  # noqa: E731
    return _ancestral(guided, chain, sampler.clip, images, drawn)


def _euler(guided: Callable[[Tensor, float], Tensor], sampler: Sampler, images: Tensor) -> Tensor:
    """Equal steps from time 1 to 0 against the predicted direction."""
    size = 1 / sampler.steps
    for step in range(sampler.steps):
        time = 1 - step * size
        direction = guided(images, TIME_SCALE * time)
        if sampler.clip:
            start = (images - time * direction).clamp(-1, 1)
            direction = (images - start) / time
        images = images - size * direction
    return images


def _ddim(guided: Callable[[Tensor, float], Tensor], chain: Chain, clip: bool, images: Tensor) -> Tensor:
    """The deterministic way: x_0 and the noise as predicted, mixed anew for the step before."""
    channels = images.shape[1]
    for step in reversed(range(len(chain.kept))):
        steps = torch.full((len(images),), step, device=images.device)
        predicted = guided(images, float(chain.times[step]))[:, :channels]
        start = predicted_start(chain, predicted, images, steps)
        if clip:
            kept = chain.at("kept", steps)
            start = start.clamp(-1, 1)
            predicted = (images - kept.sqrt() * start) / (1 - kept).sqrt()
        before = chain.at("kept_before", steps)
        images = before.sqrt() * start + (1 - before).sqrt() * predicted
    return images


def _ancestral(
    guided: Callable[[Tensor, float], Tensor],
    chain: Chain,
    clip: bool,
    images: Tensor,
    drawn: Callable[[int], Tensor],
) -> Tensor:
    """The chain backwards: a draw from p(x_{t-1} | x_t) at each step, the mean of the last one."""
    channels = images.shape[1]
    for step in reversed(range(len(chain.kept))):
        steps = torch.full((len(images),), step, device=images.device)
        output = guided(images, float(chain.times[step]))
        start = predicted_start(chain, output[:, :channels], images, steps)
        mean = step_back(chain, start.clamp(-1, 1) if clip else start, images, steps)
        if step == 0:
            return mean
        fraction = output[:, channels:]
        log_variance = learned_variance(chain, fraction, steps) if fraction.shape[1] else chain.at("largest", steps)
        images = mean + (0.5 * log_variance).exp() * drawn(step)
    raise AssertionError("a chain has steps")
