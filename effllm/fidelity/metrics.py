"""Distances between two sets of features, float64 [images, width], of sampled and of real images.

Sources: Heusel et al. 2017 (arXiv 1706.08500) for the Frechet distance, Binkowski et al. 2018 (arXiv 1801.01401) for
the kernel distance (KID), Kynkaanniemi et al. 2019 (arXiv 1904.06991) for precision and recall.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from effllm.intervals import Z95

# Numbers of a matrix of distances or kernel values that are held at once.
_BLOCK = 1 << 24


def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of means and covariances (n - 1), at least two images each.

    With C = R^T R, as the QR decomposition of the centred features gives, the trace of the root is the sum of the
    singular values of R R'^T: no covariance is formed and no root of one, so that fewer images than features, whose
    covariance is singular, lose no digits. The distance is then still that of the two Gaussians.
    """
    (mean, root), (mean_reference, root_reference) = _gaussian(samples), _gaussian(reference)
    shared = torch.linalg.svdvals(root @ root_reference.T).sum()
    spread = root.square().sum() + root_reference.square().sum() - 2 * shared
    return max(0.0, float((mean - mean_reference).square().sum() + spread))


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    mean = features.mean(dim=0)
    root = torch.linalg.qr(features - mean, mode="r").R
    return mean, root / math.sqrt(len(features) - 1)


def kernel_distance(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """KID: the unbiased squared maximum mean discrepancy of all pairs under (x . y / width + 1)^3; its standard error.

    It may be below zero. The error is the jackknife's: what leaving out each image does, of both sets, which are
    independent. At least three images each.
    """
    own, other = _sums_of_others(samples), _sums_of_others(reference)
    across, across_reference = _sums_across(samples, reference)
    n, m = len(samples), len(reference)

    def estimate(own_sum: Tensor, n: int, other_sum: Tensor, m: int, cross: Tensor) -> Tensor:
        return own_sum / (n * (n - 1)) + other_sum / (m * (m - 1)) - 2 * cross / (n * m)

    total, total_reference, cross = own.sum(), other.sum(), across.sum()
    without = estimate(total - 2 * own, n - 1, total_reference, m, cross - across)
    without_reference = estimate(total, n, total_reference - 2 * other, m - 1, cross - across_reference)
    variance = sum(
        (count - 1) * (each - each.mean()).square().mean() for each, count in ((without, n), (without_reference, m))
    )
    return float(estimate(total, n, total_reference, m, cross)), math.sqrt(float(variance))


def interval(estimate: float, error: float) -> list[float]:
    """The 95 % interval of a normal distribution."""
    return [estimate - Z95 * error, estimate + Z95 * error]


def _sums_of_others(features: Tensor) -> Tensor:
    """Of each image, the kernel's values with all others."""
    found = []
    for start, block in _blocks(features, len(features)):
        values = _kernel(block, features)
        values.diagonal(start).zero_()
        found.append(values.sum(dim=1))
    return torch.cat(found)


def _sums_across(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample, the kernel's values with the reference, and the other way round."""
    found, found_reference = [], torch.zeros_like(reference[:, 0])
    for _, block in _blocks(samples, len(reference)):
        values = _kernel(block, reference)
        found.append(values.sum(dim=1))
        found_reference += values.sum(dim=0)
    return torch.cat(found), found_reference


def _kernel(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows @ columns.T / rows.shape[1] + 1) ** 3


def precision_and_recall(samples: Tensor, reference: Tensor, neighbours: int) -> tuple[float, float]:
    """Share of the samples within the manifold of the reference, and of the reference within that of the samples.

    A manifold is the union of balls around its features, each as large as the distance to the feature's
    `neighbours`-th nearest other one, its surface included. More than `neighbours` images each.
    """
    return (
        _share_within(samples, reference, _radii(reference, neighbours)),
        _share_within(reference, samples, _radii(samples, neighbours)),
    )


def _radii(features: Tensor, neighbours: int) -> Tensor:
    found = []
    for start, block in _blocks(features, len(features)):
        distances = _distances(block, features)
        distances.diagonal(start).fill_(math.inf)
        found.append(distances.kthvalue(neighbours, dim=1).values)
    return torch.cat(found)


def _share_within(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(_distances(block, centres) <= radii).any(dim=1) for _, block in _blocks(points, len(centres))]
    return float(torch.cat(inside).double().mean())


def _distances(points: Tensor, others: Tensor) -> Tensor:
    # By products, which is quicker, an image's distance to its own copy would not be zero.
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def _blocks(rows: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, _BLOCK // columns)
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]
