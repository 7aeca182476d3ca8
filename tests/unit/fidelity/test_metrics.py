"""Distances between sets of features, against plain numpy, scipy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors

from effllm.fidelity import metrics
from effllm.fidelity.metrics import frechet_distance, kernel_distance, precision_and_recall


def drawn(images: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((images, width)) @ random.standard_normal((width, width)) / width**0.5 + shift


SAMPLES, REFERENCE = drawn(90, 12, 1), drawn(140, 12, 2, shift=0.4)
PAIR = torch.from_numpy(SAMPLES), torch.from_numpy(REFERENCE)


@pytest.fixture(autouse=True, params=[metrics._BLOCK, 300], ids=["whole", "blocks"])
def blocks(request, monkeypatch):
    """In one piece, and in pieces of two or three rows."""
    monkeypatch.setattr(metrics, "_BLOCK", request.param)


def test_the_frechet_distance_is_that_of_scipys_root():
    ours, theirs = np.cov(SAMPLES, rowvar=False), np.cov(REFERENCE, rowvar=False)
    spread = np.trace(ours + theirs - 2 * sqrtm(ours @ theirs).real)
    expected = ((SAMPLES.mean(0) - REFERENCE.mean(0)) ** 2).sum() + spread
    assert frechet_distance(*PAIR) == pytest.approx(expected, rel=1e-10)


def test_fewer_images_than_features_lose_no_digits():
    # In the space that the nine images span, where covariances have full rank.
    few = drawn(5, 12, 3), drawn(4, 12, 4)
    span = np.linalg.qr(np.concatenate(few).T)[0]
    flat = [each @ span for each in few]
    ours, theirs = (np.cov(each, rowvar=False) for each in flat)
    roots = [np.linalg.cholesky(each + 1e-14 * np.eye(9)) for each in (ours, theirs)]
    root = np.linalg.svd(roots[0].T @ roots[1])[1]
    expected = ((few[0].mean(0) - few[1].mean(0)) ** 2).sum() + np.trace(ours) + np.trace(theirs) - 2 * root.sum()
    assert frechet_distance(*map(torch.from_numpy, few)) == pytest.approx(expected, rel=1e-5)


def test_sets_of_equal_images():
    same = torch.from_numpy(REFERENCE)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-12)
    assert precision_and_recall(same, same, 3) == (1.0, 1.0)
    one = same[:1].repeat(50, 1)
    expected = float((same[0] - same.mean(0)).square().sum() + same.var(dim=0).sum())
    assert frechet_distance(one, same) == pytest.approx(expected)
    # Every copy lies where a real image does, and balls of no radius hold that image alone.
    assert precision_and_recall(one, same, 3) == (1.0, 1 / 140)


def brute_kernel_distance(samples: np.ndarray, reference: np.ndarray) -> float:
    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    n, m = len(samples), len(reference)
    own = sum(kernel(samples[i], samples[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(reference[i], reference[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(kernel(x, y) for x in samples for y in reference) / (n * m)


def test_the_kernel_distance_and_its_error_are_those_of_loops_and_of_leaving_images_out():
    samples, reference = SAMPLES[:12, :4], REFERENCE[:9, :4]
    found, error = kernel_distance(torch.from_numpy(samples.copy()), torch.from_numpy(reference.copy()))
    assert found == pytest.approx(brute_kernel_distance(samples, reference), rel=1e-10)
    without = [brute_kernel_distance(np.delete(samples, i, 0), reference) for i in range(12)]
    without_reference = [brute_kernel_distance(samples, np.delete(reference, i, 0)) for i in range(9)]
    assert error**2 == pytest.approx(11 * np.var(without) + 8 * np.var(without_reference), rel=1e-8)


def test_the_interval_of_the_kernel_distance_holds_the_true_one():
    held = 0
    for seed in range(60):
        pair = (torch.from_numpy(np.random.default_rng((seed, k)).standard_normal((80, 6)) + 0.3) for k in (0, 1))
        samples, reference = pair
        found, error = kernel_distance(samples + torch.tensor([0.5] + [0.0] * 5), reference)
        low, high = metrics.interval(found, error)
        held += low <= EXPECTED_SHIFT <= high
    assert 51 <= held <= 60


def shifted_mmd() -> float:
    """The kernel distance of N(0.3, 1) and the same shifted by 0.5 in one of six coordinates: E (x . y / 6 + 1)^3."""

    def moment(a: np.ndarray, b: np.ndarray) -> float:
        # s = x . y with independent x ~ N(a, 1), y ~ N(b, 1): mean, variance and third central moment of a sum.
        mean = a @ b
        variance = (a**2 + b**2 + 1).sum()
        third = (6 * a * b).sum()
        return 1 + 3 * mean / 6 + 3 * (variance + mean**2) / 36 + (third + 3 * mean * variance + mean**3) / 216

    real = np.full(6, 0.3)
    shifted = real + np.array([0.5, 0, 0, 0, 0, 0])
    return moment(shifted, shifted) + moment(real, real) - 2 * moment(shifted, real)


EXPECTED_SHIFT = shifted_mmd()


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_are_those_of_scikit_learns_neighbours(neighbours):
    def share(points: np.ndarray, centres: np.ndarray) -> float:
        # The nearest one is the image itself.
        radii = NearestNeighbors(n_neighbors=neighbours + 1).fit(centres).kneighbors(centres)[0][:, -1]
        distances = np.array([[math.dist(point, centre) for centre in centres] for point in points])
        return float((distances <= radii).any(axis=1).mean())

    expected = share(SAMPLES, REFERENCE), share(REFERENCE, SAMPLES)
    assert precision_and_recall(*PAIR, neighbours) == expected
    assert 0 < expected[0] < 1
