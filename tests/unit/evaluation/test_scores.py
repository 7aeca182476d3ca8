"""Standard errors and intervals of scores, and the reasons where there are none."""

import math
import random

import numpy
import pytest

from effllm.errors import UserError
from effllm.evaluation.scores import metric_key, resample_perplexity, summarize, wilson_interval


def results_of(values, samples, key="acc,none", task="t"):
    metric, filter_name = key.split(",")
    return {
        "results": {task: {"alias": task, **values}},
        "samples": {task: [{"filter": filter_name, metric: value} for value in samples]},
        "n-samples": {task: {"original": len(samples), "effective": len(samples)}},
        "n-shot": {task: 0},
        "versions": {task: 1},
    }


def benchmark_of(metric="acc", role="accuracy"):
    return {"task": "t", "metric": metric, "role": role, "tasks": [{"name": "t"}]}


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


def test_a_perfect_score_has_an_interval_below_one():
    summary = summarize(results_of({"acc,none": 1.0, "acc_stderr,none": 0.0}, [1.0] * 30), benchmark_of(), 100, 0)
    assert summary["ci95"] == wilson_interval(30, 30)
    assert "Wilson" in summary["ci95_method"]


def test_a_score_that_is_no_share_of_its_items_has_the_normal_interval():
    values = {"acc,none": 0.6, "acc_stderr,none": 0.1}
    summary = summarize(results_of(values, [1.0, 0.0]), benchmark_of(), 100, 0)
    assert summary["ci95"] == pytest.approx([0.6 - 1.96 * 0.1, 0.6 + 1.96 * 0.1], abs=1e-4)
    assert summary["ci95_method"].startswith("normal")


def test_what_lm_eval_does_not_give_is_null_with_a_reason():
    values = {"bleu,none": 3.0, "bleu_stderr,none": "N/A"}
    summary = summarize(results_of(values, [2.0, 4.0], "bleu,none"), benchmark_of("bleu"), 100, 0)
    assert summary["stderr"] is summary["ci95"] is summary["stderr_source"] is summary["ci95_method"] is None
    assert set(summary["reasons"]) == {"stderr", "ci95", "metrics.bleu,none.stderr"}
    without = summarize(results_of(values, [2.0, 4.0], "bleu,none"), benchmark_of("bleu"), 0, 0)
    assert "bootstrap_iters is 0" in without["reasons"]["stderr"]


def test_resampled_perplexity_has_the_spread_of_fresh_samples_of_documents():
    rng = numpy.random.default_rng(1)

    def documents():
        size = rng.integers(100, 1000, 80).astype(float)
        return [(-rng.normal(1.5, 0.3) * bytes_, bytes_) for bytes_ in size]

    def bits(table):
        return -sum(nats for nats, _ in table) / sum(bytes_ for _, bytes_ in table) / math.log(2)

    truth = numpy.std([bits(documents()) for _ in range(400)])
    resampled = resample_perplexity("bits_per_byte", documents(), 400, 0)
    assert resampled.std() == pytest.approx(truth, rel=0.3)
    table = documents()
    assert resample_perplexity("bits_per_byte", table, 400, 0).mean() == pytest.approx(bits(table), rel=0.01)
    one = resample_perplexity("byte_perplexity", [(-20.0, 10.0)] * 3, 2, 0)
    assert one == pytest.approx([math.exp(2)] * 2)


def test_a_metric_is_found_by_its_name_or_by_name_and_filter():
    values = {"alias": "t", "acc,none": 1, "acc_stderr,none": 0, "exact_match,strict": 1, "exact_match,flexible": 0}
    assert metric_key(values, "acc", "t") == "acc,none"
    assert metric_key(values, "exact_match,strict", "t") == "exact_match,strict"
    with pytest.raises(UserError, match="several filters; choose one of exact_match,flexible, exact_match,strict"):
        metric_key(values, "exact_match", "t")
    with pytest.raises(UserError, match="was not computed; choose one of acc,none"):
        metric_key(values, "f1", "t")
