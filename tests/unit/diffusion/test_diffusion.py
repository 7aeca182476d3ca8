"""Objectives and samplers against data of which everything is known: independent Gaussian pixels."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from effllm.diffusion.chain import DdpmObjective, linear_chain, log_likelihood
from effllm.diffusion.draws import TrainingDraws, collate, sampling_noise
from effllm.diffusion.flow import FlowObjective
from effllm.diffusion.sampling import sample
from effllm.diffusion.settings import Ddpm, Draws, Flow, Sampler, check_sampler

DDPM, FLOW = Ddpm(kind="ddpm"), Flow(kind="flow")
MEAN, SHAPE = 0.3, (2, 4, 4)


def noise_of_gaussian(deviation: float, fraction: float | None = None):
    """The best denoiser of pixels N(MEAN, deviation^2): E[e | x_t] of a Gaussian, and a fixed sigma if one is given."""
    kept = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))).float()

    def denoiser(noised: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        k = kept[times.long()].view(-1, 1, 1, 1)
        predicted = (1 - k).sqrt() * (noised - k.sqrt() * MEAN) / (k * deviation**2 + 1 - k)
        return predicted if fraction is None else torch.cat((predicted, torch.full_like(noised, fraction)), dim=1)

    return denoiser


def direction_of_gaussian(deviation: float):
    """E[e - x | x_t] of the same on the straight way."""

    def denoiser(noised: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        t = (times / 1000).view(-1, 1, 1, 1)
        slope = (t - (1 - t) * deviation**2) / ((1 - t) ** 2 * deviation**2 + t**2)
        return slope * (noised - (1 - t) * MEAN) - MEAN

    return denoiser


def drawn(denoiser, objective, count: int = 40, **keys) -> Tensor:
    labels = torch.zeros(count, dtype=torch.long)
    return sample(denoiser, objective, Sampler(**keys), labels, 10, 7, range(count), SHAPE)


def test_the_linear_schedule_is_ho_et_als():
    chain = linear_chain(DDPM)
    assert chain.betas[[0, 999]] == pytest.approx([1e-4, 0.02])
    # Their section 4: 4e-5 of the signal is left.
    assert chain.kept[-1] == pytest.approx(4.04e-5, rel=0.01)
    few = chain.respaced(50)
    assert (few.times[0], few.times[-1], len(few.times)) == (0, 999, 50)
    np.testing.assert_allclose(np.cumprod(1 - few.betas), chain.kept[few.times])


def test_the_deterministic_ways_end_where_the_flow_of_the_gaussian_does():
    noise = sampling_noise(7, 0, range(40), SHAPE)
    expected = MEAN + 0.5 * noise
    torch.testing.assert_close(
        drawn(direction_of_gaussian(0.5), FLOW, kind="euler", steps=400), expected, atol=0.01, rtol=0
    )
    kept = float(linear_chain(DDPM).kept[-1])
    standard = (noise - math.sqrt(kept) * MEAN) / math.sqrt(kept * 0.25 + 1 - kept)
    found = drawn(noise_of_gaussian(0.5), DDPM, kind="ddim", steps=1000)
    torch.testing.assert_close(found, MEAN + 0.5 * standard, atol=0.01, rtol=0)


def test_the_chain_in_few_steps_draws_the_gaussian_whose_best_variance_is_beta():
    images = drawn(noise_of_gaussian(1.0, fraction=1.0), DDPM, kind="ddpm", steps=30, count=400)
    error = 1 / math.sqrt(images.numel())
    assert images.mean() == pytest.approx(MEAN, abs=4 * error)
    assert images.var() == pytest.approx(1, abs=4 * math.sqrt(2) * error)
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "euler"])
def test_a_single_point_is_found_exactly_and_within_its_bounds(kind):
    flow = kind == "euler"
    denoiser = direction_of_gaussian(0.0) if flow else noise_of_gaussian(0.0)
    images = drawn(denoiser, FLOW if flow else DDPM, kind=kind, steps=20, count=3, clip=True)
    torch.testing.assert_close(images, torch.full_like(images, MEAN), atol=2e-3, rtol=0)


def test_guidance_goes_away_from_what_has_no_label():
    seen = []

    def denoiser(noised: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(labels))
        return labels.view(-1, 1, 1, 1).float().expand(-1, 4, 4, 4) / 10

    images = sample(
        denoiser, FLOW, Sampler(kind="euler", steps=1, guidance=3.0), torch.tensor([2]), 10, 7, [5], (4, 4, 4)
    )
    torch.testing.assert_close(images, sampling_noise(7, 0, [5], (4, 4, 4)) - (1 + 3 * (0.2 - 1)))
    assert seen == [2] and Sampler(kind="euler", steps=1, guidance=3.0).evaluations == 2


def test_the_bound_is_the_divergence_of_the_step_from_what_is_predicted():
    objective, generator = DdpmObjective(DDPM, learned_sigma=True), torch.Generator().manual_seed(0)
    images, noise, predicted = (torch.randn(6, 2, 3, 3, generator=generator) for _ in range(3))
    fraction = torch.rand(6, 2, 3, 3, generator=generator) * 2 - 1
    times = torch.tensor([0, 1, 2, 10, 500, 999])
    bound = objective.bound(predicted, fraction, images, objective.noised(images, noise, times), times)
    beta = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - beta)
    for i, t in enumerate(times.tolist()[1:], start=1):
        noised = (images[i] * kept[t] ** 0.5 + noise[i] * (1 - kept[t]) ** 0.5).double()
        start = (noised - (1 - kept[t]) ** 0.5 * predicted[i].double()) / kept[t] ** 0.5
        variance = beta[t] * (1 - kept[t - 1]) / (1 - kept[t])

        def mean(x: Tensor) -> Tensor:
            return (
                kept[t - 1] ** 0.5 * beta[t] * x + (1 - beta[t]) ** 0.5 * (1 - kept[t - 1]) * noised  # noqa: B023
            ) / (1 - kept[t])  # noqa: B023

        share = (fraction[i].double() + 1) / 2
        deviation = (0.5 * (share * math.log(beta[t]) + (1 - share) * math.log(variance))).exp()
        expected = kl_divergence(Normal(mean(images[i].double()), variance**0.5), Normal(mean(start), deviation)).mean()
        assert bound[i] == pytest.approx(float(expected) / math.log(2), rel=2e-3)


def test_levels_have_all_of_the_probability():
    levels = torch.linspace(-1, 1, 256).double()
    for mean, log_variance in ((0.0, -4.0), (0.9, -7.0), (-1.2, 0.0)):
        logs = log_likelihood(levels, torch.full_like(levels, mean), torch.full_like(levels, log_variance))
        assert logs.exp().sum() == pytest.approx(1, abs=1e-6)


def test_losses_are_least_at_the_truth_and_sigma_gets_no_gradient_of_the_noise():
    images, noise = torch.randn(2, 64, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    flow = FlowObjective()
    assert flow.losses(noise - images, images, noise, torch.rand(64)).max() == 0
    assert torch.equal(flow.noised(images, noise, torch.ones(64)), noise)
    assert DdpmObjective(DDPM, False).losses(noise, images, noise, torch.zeros(64, dtype=torch.long)).max() == 0
    objective, times = DdpmObjective(DDPM, True), torch.arange(1, 65)
    output = torch.cat((noise + 0.1, torch.zeros_like(noise)), dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(objective.losses(output, images, noise, times).mean(), output)
    torch.testing.assert_close(gradient[:, :2], torch.full_like(noise, 0.2 / noise.numel()))
    assert gradient[:, 2:].abs().min() > 0


class _Pictures:
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.arange(16, dtype=np.float32).reshape(1, 4, 4) + index, index % 3

    def mirrored(self, index: int) -> np.ndarray:
        return self[index][0][..., ::-1].copy()


def test_what_is_drawn_depends_on_seed_step_and_sample_alone():
    order = np.array([3, 1, 4, 1, 5, 9, 3, 1])
    data = TrainingDraws(_Pictures(), order, 4, DDPM, Draws(flip=True), 3, seed=11)
    item = data[6]
    other_order = TrainingDraws(_Pictures(), np.array([0, 0, 0, 0, 3, 0, 0, 0]), 4, DDPM, Draws(flip=True), 3, seed=11)
    for key in ("images", "noise", "times", "labels"):
        assert np.array_equal(item[key], other_order[4][key])
    assert not np.array_equal(item["noise"], data[0]["noise"])
    batch = collate([data[0], data[1]])
    assert batch["images"].shape == (2, 1, 4, 4) and batch["times"].dtype == torch.int64


def test_labels_are_dropped_and_images_mirrored_as_often_as_asked():
    order = np.zeros(3000, dtype=np.int64)
    data = TrainingDraws(_Pictures(), order, 1, FLOW, Draws(label_dropout=0.25, flip=True), 3, seed=0)
    items = [data[index] for index in range(len(data))]
    assert np.mean([item["labels"] == 3 for item in items]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([item["images"][0, 0, 0] == 3 for item in items]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([item["times"] for item in items]) == pytest.approx(0.5, abs=0.02)
    assert np.std([item["noise"] for item in items]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("sampler", "objective", "said"),
    [
        ({"kind": "ddim", "steps": 50}, FLOW, "kind ddim does not sample from a model of kind flow: choose euler"),
        ({"kind": "euler", "steps": 50}, DDPM, "choose ddim or ddpm"),
        ({"kind": "ddpm", "steps": 2000}, DDPM, "steps 2000 is not from 2 to the 1000 of the model's chain"),
        # The step from noise would be left out.
        ({"kind": "ddim", "steps": 1}, DDPM, "steps 1 is not from 2 to the 1000"),
        ({"kind": "euler", "steps": 1}, FLOW, None),
        ({"kind": "ddpm", "steps": 1000}, DDPM, None),
    ],
)
def test_samplers_that_do_not_fit_are_refused(sampler, objective, said):
    found = check_sampler(Sampler(**sampler), objective)
    assert found is None if said is None else said in found


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"steps": 100}, "leave 0.36 of an image, which is not noise alone, as samples begin: write beta_last 0.2"),
        ({"steps": 4000}, "leave 2.7e-18 of an image, which float32 cannot tell from nothing: write beta_last 0.005"),
        ({"steps": 10}, "write beta_last 0.9"),
        ({"beta_first": 0.5, "beta_last": 0.5}, "float32 cannot tell from nothing"),
        ({"beta_first": 1e-9}, "greater than or equal to 0.000001"),
    ],
)
def test_chains_that_do_not_end_in_noise_are_refused_with_one_that_does(keys, said):
    with pytest.raises(ValidationError, match=said):
        Ddpm(kind="ddpm", **keys)


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 22, 23, 40, 100, 500, 4000, 50_000])
def test_the_chain_that_is_advised_ends_in_noise_and_its_numbers_are_finite_in_float32(steps):
    chain = linear_chain(Ddpm(kind="ddpm", steps=steps, beta_last=min(0.9, float(f"{20 / steps:.2g}"))))
    assert chain.kept[-1] < 0.1
    for name in ("kept", "kept_before", "least", "largest", "of_start", "of_noised"):
        assert chain.at(name, torch.arange(steps)).isfinite().all(), name
    assert (chain.at("kept", torch.arange(steps)) > 0).all()
