"""Standard errors and intervals of scores, and the reasons where there are none."""

import math

import numpy
import pytest

from effllm.errors import UserError
from effllm.evaluation.scores import cluster_scores, metric_key, resample_perplexity, summarize
from effllm.intervals import wilson_interval
from effllm.results.benchmark import Benchmark, BenchmarkTask


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
    return Benchmark(
        kind="held_out",
        task="t",
        metric=metric,
        higher_is_better=role == "accuracy",
        role=role,
        chance_level=0.5,
        chance_meaning="a coin",
        items=1,
        limit=None,
        tasks=[BenchmarkTask(name="t", output_type="", items=1, data_files={}, include=None, config={})],
        cluster=None,
        groups={},
        source={},
    )


def test_a_perfect_score_has_an_interval_below_one():
    summary = summarize(results_of({"acc,none": 1.0, "acc_stderr,none": 0.0}, [1.0] * 30), benchmark_of(), 100, 0)
    assert summary.ci95 == wilson_interval(30, 30)
    assert "Wilson" in summary.ci95_method
    # One rule: the error is that of the interval, not lm-eval's 0.
    assert summary.stderr == pytest.approx((1 - wilson_interval(30, 30)[0]) / 3.92, rel=1e-4)


def clustered(values, clusters, key="acc,none", **benchmark):
    """The same results of items that name their clusters, and their benchmark."""
    results = results_of({key: sum(values) / len(values)} if key == "acc,none" else {key: 1.0}, values, key)
    for sample, cluster in zip(results["samples"]["t"], clusters, strict=True):
        sample["doc"] = {"from": cluster}
    return results, benchmark_of(key.partition(",")[0], **benchmark).model_copy(update={"cluster": "from"})


def test_items_made_from_one_text_are_clustered():
    values, clusters = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0] * 10, [number // 4 for number in range(80)]
    summary = summarize(*clustered(values, clusters), 100, 0)
    # 20 clusters, each all right or all wrong: 19 / 79 of the items, in units of sample variances.
    trials = 80 * 19 / 79
    assert summary.ci95 == pytest.approx(wilson_interval(trials / 2, trials))
    assert summarize(*clustered(values, range(80)), 100, 0).ci95 == pytest.approx(wilson_interval(40, 80))
    assert cluster_scores(*clustered([1.0, 0.0, 1.0], ["a", "b", "a"])).root == {"a": [2.0, 2], "b": [0.0, 1]}
    assert cluster_scores(results_of({"acc,none": 1.0}, [1.0]), benchmark_of()) is None


def test_documents_of_one_text_are_resampled_together():
    rng = numpy.random.default_rng(0)
    pairs = [(-float(nats), 100.0) for nats in rng.normal(150, 30, 40)]
    alone = summarize(*clustered(pairs, range(40), "bits_per_byte,none", role="perplexity"), 500, 0)
    copied = [pair for pair in pairs for _ in range(4)]
    copies = [number // 4 for number in range(160)]
    together = summarize(*clustered(copied, copies, "bits_per_byte,none", role="perplexity"), 500, 0)
    assert together.stderr == pytest.approx(alone.stderr)
    apart = summarize(*clustered(copied, range(160), "bits_per_byte,none", role="perplexity"), 500, 0)
    assert apart.stderr == pytest.approx(alone.stderr / 2, rel=0.2)
    assert cluster_scores(*clustered(copied, copies, "bits_per_byte,none", role="perplexity")) is None


def test_a_score_that_is_no_share_of_its_items_has_the_normal_interval():
    values = {"acc,none": 0.6, "acc_stderr,none": 0.1}
    summary = summarize(results_of(values, [1.0, 0.0]), benchmark_of(), 100, 0)
    assert summary.ci95 == pytest.approx([0.6 - 1.96 * 0.1, 0.6 + 1.96 * 0.1], abs=1e-4)
    assert summary.ci95_method.startswith("normal")


def test_what_lm_eval_does_not_give_is_null_with_a_reason():
    values = {"bleu,none": 3.0, "bleu_stderr,none": "N/A"}
    summary = summarize(results_of(values, [2.0, 4.0], "bleu,none"), benchmark_of("bleu"), 100, 0)
    assert summary.stderr is summary.ci95 is summary.stderr_source is summary.ci95_method is None
    assert set(summary.reasons) == {"stderr", "ci95", "metrics.bleu,none.stderr"}
    without = summarize(results_of(values, [2.0, 4.0], "bleu,none"), benchmark_of("bleu"), 0, 0)
    assert "bootstrap_iters is 0" in without.reasons["stderr"]


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
