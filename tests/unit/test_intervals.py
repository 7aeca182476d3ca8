"""Standard errors and intervals by cluster against the literature, matrix algebra and resampling."""

import math
import random

import numpy as np
import pytest
import scipy.stats

from effllm.intervals import (
    Z95,
    correlation_of_means,
    effective_trials,
    mean_interval,
    ratio_standard_error,
    sums_by_cluster,
    wilson_interval,
)


def sandwich(y, x, clusters):
    """Liang and Zeger's covariance of least squares, as statsmodels has it (cov_type="cluster"), n >> k.

    (X'X)^-1 (sum over clusters of X_g' e_g e_g' X_g) (X'X)^-1 times G / (G - 1).
    """
    y, x, clusters = map(np.asarray, (y, x, clusters))
    bread = np.linalg.inv(x.T @ x)
    residuals = y - x @ (bread @ x.T @ y)
    names = np.unique(clusters)
    scores = np.stack([x[clusters == name].T @ residuals[clusters == name] for name in names])
    return bread @ (scores.T @ scores) @ bread * len(names) / (len(names) - 1)


def documents(seed, count):
    """Losses of tokens, alike within a document, and the document of each."""
    rng = np.random.default_rng(seed)
    losses, document = [], []
    for number in range(count):
        size = int(rng.integers(20, 400))
        losses += (rng.normal(3, 0.6) + rng.exponential(1, size) - 1).tolist()
        document += [number] * size
    return losses, document


def test_the_error_of_a_loss_is_the_cluster_robust_one_of_its_documents():
    losses, document = documents(0, 60)
    sums, counts = sums_by_cluster(losses, [1] * len(losses), document)
    assert (len(sums), sum(counts)) == (60, len(losses))
    error = ratio_standard_error(sums, counts)
    covariance = sandwich(losses, np.ones((len(losses), 1)), document)
    assert error == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-9)
    rng = np.random.default_rng(1)
    table = np.stack([sums, counts], axis=1)
    resampled = [np.divide(*table[rng.integers(60, size=60)].sum(axis=0)) for _ in range(2000)]
    assert error == pytest.approx(np.std(resampled), rel=0.1)
    # Windows of 64 tokens, taken for independent, look half as sure again and more.
    windows = [(sum(part), len(part)) for part in (losses[at : at + 64] for at in range(0, len(losses), 64))]
    assert error > 1.5 * ratio_standard_error(*zip(*windows, strict=True))


def test_the_interval_over_documents_holds_the_truth_in_nineteen_of_twenty_samples():
    covered = 0
    for seed in range(400):
        losses, document = documents(seed, 50)
        sums, counts = sums_by_cluster(losses, [1] * len(losses), document)
        mean = sum(sums) / sum(counts)
        covered += abs(mean - 3) < Z95 * ratio_standard_error(sums, counts)
    assert 0.91 < covered / 400 < 0.98


def test_items_that_are_their_own_clusters_have_the_plain_standard_error():
    values = random.Random(0).choices([0, 1], k=50)
    assert ratio_standard_error(values, [1] * 50) == pytest.approx(scipy.stats.sem(values))
    assert ratio_standard_error([1.0], [3]) is None


def test_wilson_interval_equals_the_published_formula_and_has_width_at_the_ends():
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263 and 0 of 20 by the score method.
    assert wilson_interval(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx([0.0, 0.1611], abs=1e-4)
    assert wilson_interval(20, 20) == pytest.approx([0.8389, 1.0], abs=1e-4)
    assert (wilson_interval(0, 200)[0], wilson_interval(200, 200)[1]) == (0.0, 1.0)


def test_wilson_interval_covers_the_truth_in_nineteen_of_twenty_samples():
    rng, covered = random.Random(0), 0
    for _ in range(2000):
        low, high = wilson_interval(sum(rng.random() < 0.9 for _ in range(60)), 60)
        covered += low <= 0.9 <= high
    assert 0.93 < covered / 2000 < 0.975


def test_items_of_one_cluster_count_for_as_many_as_they_tell():
    outcomes = [1, 0, 1, 1, 0, 1, 0, 0]
    assert effective_trials(outcomes, range(8)) == pytest.approx(8)
    copied = [value for value in outcomes for _ in range(5)]
    # Copies tell nothing new, up to the n - 1 of sample variances: 7 / 39 of the 40.
    assert effective_trials(copied, [number // 5 for number in range(40)]) == pytest.approx(40 * 7 / 39)
    assert effective_trials([0] * 40, [number // 5 for number in range(40)]) == 8
    # Opposites within a cluster never make more of the items than they are.
    assert effective_trials([0, 1] * 20, [number // 2 for number in range(40)]) == 40


def paired_benchmarks(seed, sentences=150):
    """Two benchmarks of which half the sentences are common and decide a good part of both outcomes."""
    rng = random.Random(seed)
    ease = [rng.random() for _ in range(sentences)]
    first = {number: [float(rng.random() < ease[number]), 1] for number in range(100)}
    second = {number: [float(rng.random() < ease[number]), 1] for number in range(50, sentences)}
    return first, second


def test_the_mean_of_benchmarks_that_share_sentences_has_the_cluster_robust_error():
    first, second = paired_benchmarks(3)
    rows = [(value, (1, 0), cluster) for cluster, (value, _) in first.items()]
    rows += [(value, (0, 1), cluster) for cluster, (value, _) in second.items()]
    covariance = sandwich(*zip(*rows, strict=True))
    scale = np.sqrt(np.diag(covariance))
    correlation = correlation_of_means(first, second)
    assert correlation == pytest.approx(covariance[0, 1] / scale.prod(), rel=1e-9)
    assert correlation > 0.1
    # With intervals of +- 1.96 errors the interval is that of the mean of two correlated estimates.
    means = [sum(value for value, _ in part.values()) / 100 for part in (first, second)]
    intervals = [[mean - Z95 * error, mean + Z95 * error] for mean, error in zip(means, scale, strict=True)]
    low, high = mean_interval(means, intervals, [[1, correlation], [correlation, 1]])
    error = math.sqrt(np.array([0.5, 0.5]) @ covariance @ np.array([0.5, 0.5]))
    assert [low, high] == pytest.approx([sum(means) / 2 - Z95 * error, sum(means) / 2 + Z95 * error])


def test_the_mean_of_benchmarks_that_share_sentences_is_covered_in_nineteen_of_twenty_samples():
    covered = {"with": 0, "without": 0}
    for seed in range(1000):
        rng = random.Random(seed)
        # One sentence makes an item of each benchmark, and is easy or hard for both.
        hard = [rng.random() < 0.5 for _ in range(60)]
        benchmarks = [
            {number: [float(rng.random() < (0.1 if is_hard else 0.9)), 1] for number, is_hard in enumerate(hard)}
            for _ in range(3)
        ]
        means = [sum(value for value, _ in part.values()) / 60 for part in benchmarks]
        intervals = [wilson_interval(60 * mean, 60) for mean in means]
        correlations = [[correlation_of_means(one, other) for other in benchmarks] for one in benchmarks]
        for name, matrix in (("with", correlations), ("without", np.eye(3))):
            low, high = mean_interval(means, intervals, matrix)
            covered[name] += low <= 0.5 <= high
    assert 0.93 < covered["with"] / 1000 < 0.975
    assert covered["without"] / 1000 < 0.86


def test_benchmarks_without_common_sentences_or_without_spread_do_not_go_together():
    one = {"a": [1.0, 1], "b": [0.0, 1]}
    assert correlation_of_means(one, one) == pytest.approx(1)
    assert correlation_of_means(one, {"c": [1.0, 1]}) == 0
    assert correlation_of_means({}, one) == correlation_of_means(one, {}) == 0
    assert correlation_of_means(one, {"a": [0.0, 1], "b": [0.0, 1]}) == 0


def test_a_score_of_nought_enters_the_mean_with_the_interval_that_it_has_alone():
    nought, half = wilson_interval(0, 100), wilson_interval(50, 100)
    assert nought == pytest.approx([0, 0.0370], abs=1e-4)
    assert mean_interval([0.0], [nought], [[1]]) == pytest.approx(nought)
    assert mean_interval([0.0, 0.0], [nought, nought], np.eye(2)) == pytest.approx([0, 0.0370 / math.sqrt(2)], abs=1e-4)
    low, high = mean_interval([0.0, 0.5], [nought, half], np.eye(2))
    assert low == pytest.approx(0.25 - (0.5 - half[0]) / 2)
    assert high == pytest.approx(0.25 + math.hypot(nought[1], half[1] - 0.5) / 2)
    full = wilson_interval(100, 100)
    assert mean_interval([1.0, 1.0], [full, full], np.eye(2)) == pytest.approx([1 - 0.0370 / math.sqrt(2), 1], abs=1e-4)
