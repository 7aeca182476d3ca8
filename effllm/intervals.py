"""Standard errors and 95 % intervals of means over items that fall into clusters.

Items of one cluster (windows or tokens of one document, items made from one sentence) are not independent; clusters
are taken to be. An error is therefore that of sums over clusters (Cochran, Sampling Techniques, 6.8 and 9.5; Liang and
Zeger 1986), which is that of plain items where every item is a cluster of its own.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Z95 = 1.959963984540054
"""Standard errors to either side of a mean that hold 95 % of a normal distribution."""

_Cluster = TypeVar("_Cluster", bound=Hashable)


def sums_by_cluster(
    sums: Sequence[float], counts: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[list[float], list[float]]:
    """Sums and counts of items added up by cluster, in the order in which clusters come first."""
    totals: dict[Hashable, list[float]] = {}
    for total, count, cluster in zip(sums, counts, clusters, strict=True):
        entry = totals.setdefault(cluster, [0.0, 0])
        entry[0] += total
        entry[1] += count
    return [total for total, _ in totals.values()], [count for _, count in totals.values()]


def ratio_standard_error(sums: Sequence[float], counts: Sequence[float]) -> float | None:
    """Standard error of sum(sums) / sum(counts) over independent clusters; None for one cluster."""
    if len(sums) < 2:
        return None
    total = math.fsum(counts)
    ratio = math.fsum(sums) / total
    spread = math.fsum((part - ratio * count) ** 2 for part, count in zip(sums, counts, strict=True))
    return math.sqrt(spread * len(sums) / (len(sums) - 1)) / total


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def wilson_interval(successes: float, trials: float) -> list[float]:
    """95 % score interval of a proportion (Wilson 1927), which has a width at 0 and at 1 too."""
    share = successes / trials
    denominator = 1 + Z95**2 / trials
    center = share + Z95**2 / (2 * trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    # At the ends the formula gives 0 and 1 but for rounding.
    low = (center - half) / denominator if successes > 0 else 0.0
    high = (center + half) / denominator if successes < trials else 1.0
    return [low, high]


def effective_trials(outcomes: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many independent items (0 or 1 each) tell as much of their share as these do (Kish's design effect).

    Their number where every item is a cluster of its own, and never more. Where all outcomes are alike nothing shows
    how alike the items of a cluster are, and each cluster counts as one.
    """
    ones = [1] * len(outcomes)
    by_cluster = sums_by_cluster(outcomes, ones, clusters)
    error, plain_error = ratio_standard_error(*by_cluster), ratio_standard_error(outcomes, ones)
    if min(outcomes) == max(outcomes) or error is None or plain_error is None:
        return len(by_cluster[0])
    design_effect = (error / plain_error) ** 2
    return len(outcomes) / max(design_effect, 1.0)


def correlation_of_means(one: Mapping[_Cluster, Sequence[float]], other: Mapping[_Cluster, Sequence[float]]) -> float:
    """Correlation of two means that share clusters: [sum, items] by cluster each; 0 where they share none.

    That of the cluster-robust covariance of both means estimated together. A mean without spread goes with nothing.
    """

    def deviations(sums: Mapping[_Cluster, Sequence[float]]) -> dict[_Cluster, float]:
        mean = math.fsum(total for total, _ in sums.values()) / math.fsum(count for _, count in sums.values())
        return {cluster: total - mean * count for cluster, (total, count) in sums.items()}

    if one.keys().isdisjoint(other):
        return 0.0
    left, right = deviations(one), deviations(other)
    spread = math.fsum(d * d for d in left.values()) * math.fsum(d * d for d in right.values())
    common = math.fsum(deviation * right[cluster] for cluster, deviation in left.items() if cluster in right)
    return common / math.sqrt(spread) if spread else 0.0


def mean_interval(
    means: Sequence[float], intervals: Sequence[Sequence[float]], correlations: Sequence[Sequence[float]]
) -> list[float]:
    """95 % interval of the plain mean of estimates that have intervals of their own (Zou and Donner 2008, MOVER).

    Each limit recovers the variance of its side: an estimate of 0 with the interval [0, 0.037] adds nothing below and
    0.037 above. Of one estimate it is its own interval. `correlations` are those of the estimates.
    """
    center = math.fsum(means) / len(means)
    edges = []
    for side in (0, 1):
        reaches = [interval[side] - mean for mean, interval in zip(means, intervals, strict=True)]
        variance = math.fsum(
            correlations[i][j] * reaches[i] * reaches[j] for i in range(len(means)) for j in range(len(means))
        )
        reach = math.sqrt(max(variance, 0.0)) / len(means)
        edges.append(center + reach if side else center - reach)
    return edges
