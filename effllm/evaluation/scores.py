"""From lm-eval's results to the scores of an evaluation: value, standard error, interval, per task.

Items that name a cluster (the sentence or document that they were made from) are clustered by it; others stand for
themselves. A share of right answers has Wilson's interval and the standard error that belongs to it, at 0 and 1 too.
Perplexities have those of resampled documents, other metrics lm-eval's standard error where it has one.
"""

import math
from typing import Any

import numpy

from effllm.errors import UserError
from effllm.intervals import Z95, effective_trials, sums_by_cluster, wilson_interval
from effllm.results.benchmark import Benchmark
from effllm.results.evaluation import Clusters, MetricScore, Scores, TaskScore

_WILSON = "Wilson score interval of the share of right answers"
_CLUSTERED_WILSON = f"{_WILSON}, of as many independent items as tell as much"
_NORMAL = "normal: score +- 1.96 standard errors"
_BOOTSTRAP = "percentiles of the score over resampled documents"


def summarize(results: dict[str, Any], benchmark: Benchmark, bootstrap_iters: int, seed: int) -> Scores:
    """The scores of one evaluation; what is None has its reason in `reasons`.

    `results` is what `lm_eval.evaluator.evaluate` returned with samples. `UserError` if the metric is not among the
    results, or is computed after several filters and none is named.
    """
    values = results["results"][benchmark.task]
    key = metric_key(values, benchmark.metric, benchmark.task)
    names = [task.name for task in benchmark.tasks]
    outcomes, clusters = _outcomes(results["samples"], benchmark, key)
    score = float(values[key])
    reasons: dict[str, str] = {}
    stderr = _number(values.get(_stderr_key(key)))
    source: str | None = "lm-eval"
    interval = method = None
    if _is_share(outcomes, score):
        trials = effective_trials(outcomes, clusters)
        interval = wilson_interval(score * trials, trials)
        method = _WILSON if trials == len(outcomes) else _CLUSTERED_WILSON
        stderr, source = (interval[1] - interval[0]) / (2 * Z95), "half the width of ci95 over 1.96"
    elif stderr is not None:
        interval, method = [score - Z95 * stderr, score + Z95 * stderr], _NORMAL
    elif benchmark.role == "perplexity" and len(names) == 1 and bootstrap_iters:
        sums, counts = zip(*outcomes, strict=True)
        documents = list(zip(*sums_by_cluster(sums, counts, clusters), strict=True))
        resampled = resample_perplexity(key.partition(",")[0], documents, bootstrap_iters, seed)
        stderr, source = float(resampled.std(ddof=1)), f"{bootstrap_iters} resamplings of the documents"
        interval, method = [float(edge) for edge in numpy.percentile(resampled, [2.5, 97.5])], _BOOTSTRAP
    if stderr is None:
        source = None
        reasons["stderr"] = _no_stderr(bootstrap_iters, len(outcomes))
    if interval is None:
        reasons["ci95"] = reasons["stderr"]
    metrics, missing = _all_metrics(values)
    return Scores(
        score=score,
        stderr=stderr,
        stderr_source=source,
        ci95=interval,
        ci95_method=method,
        metric=key,
        items=sum(results["n-samples"][name]["effective"] for name in names),
        metrics=metrics,
        tasks={name: _task_score(results, name, key) for name in names},
        reasons={**reasons, **missing},
    )


def metric_key(values: dict[str, Any], metric: str, task: str) -> str:
    """lm-eval's key ("metric,filter") of `metric` among a task's values; `UserError` if none or several match."""
    keys = [key for key in values if "," in key and "_stderr," not in key]
    matching = [key for key in keys if metric in (key, key.partition(",")[0])]
    if len(matching) == 1:
        return matching[0]
    problem = "is computed after several filters" if matching else "was not computed"
    raise UserError(
        f"benchmark.metric: {metric!r} of {task} {problem}; choose one of {', '.join(sorted(matching or keys))}."
    )


def resample_perplexity(metric: str, outcomes: list[tuple[float, float]], resamples: int, seed: int) -> numpy.ndarray:
    """The metric over `resamples` bootstrap samples of (log-likelihood in nats, bytes or words) per document."""
    table = numpy.asarray(outcomes, dtype=float)
    rng = numpy.random.default_rng(seed)
    # One draw at a time: a matrix of all draws would grow with the documents times the resamples.
    draws = (table[rng.integers(len(table), size=len(table))].sum(axis=0) for _ in range(resamples))
    nats = numpy.array([-total / weight for total, weight in draws])
    return nats / math.log(2) if metric == "bits_per_byte" else numpy.exp(nats)


def cluster_scores(results: dict[str, Any], benchmark: Benchmark) -> Clusters | None:
    """[sum of the metric, items] by cluster: what tells how far benchmarks made from the same text vary together.

    None where the benchmark's items name no cluster, or the metric is no number per item.
    """
    values = results["results"][benchmark.task]
    key = metric_key(values, benchmark.metric, benchmark.task)
    outcomes, clusters = _outcomes(results["samples"], benchmark, key)
    if not benchmark.cluster or not all(_is_number(value) for value in outcomes):
        return None
    sums = sums_by_cluster(outcomes, [1] * len(outcomes), clusters)
    return Clusters(dict(zip(dict.fromkeys(clusters), map(list, zip(*sums, strict=True)), strict=True)))


def _is_share(outcomes: list[Any], score: float) -> bool:
    """Whether the score is the mean of outcomes that are right or wrong.

    A group that does not weight by size has another mean than its items, and no binomial interval.
    """
    if not outcomes or not all(_is_number(value) and value in (0, 1) for value in outcomes):
        return False
    return math.isclose(sum(outcomes) / len(outcomes), score, rel_tol=0, abs_tol=1e-9)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _outcomes(samples: dict[str, list[dict[str, Any]]], benchmark: Benchmark, key: str) -> tuple[list, list]:
    """What the metric made of each item, and the item's cluster: what its row says, or else its own number."""
    metric, _, filter_name = key.partition(",")
    column = benchmark.cluster
    found = [
        sample
        for task in benchmark.tasks
        for sample in samples[task.name]
        if sample["filter"] == filter_name and metric in sample
    ]
    clusters = [sample["doc"][column] if column else number for number, sample in enumerate(found)]
    return [sample[metric] for sample in found], clusters


def _task_score(results: dict[str, Any], name: str, key: str) -> TaskScore:
    values = results["results"][name]
    return TaskScore(
        score=_number(values.get(key)),
        stderr=_number(values.get(_stderr_key(key))),
        items=results["n-samples"][name]["effective"],
        n_shot=results["n-shot"].get(name),
        version=results["versions"].get(name),
    )


def _all_metrics(values: dict[str, Any]) -> tuple[dict[str, MetricScore], dict[str, str]]:
    metrics, reasons = {}, {}
    for key in (key for key in values if "," in key and "_stderr," not in key):
        metrics[key] = MetricScore(value=_number(values[key]), stderr=_number(values.get(_stderr_key(key))))
        if metrics[key].stderr is None:
            reasons[f"metrics.{key}.stderr"] = "lm-eval gives no standard error for this metric"
        if metrics[key].value is None:
            reasons[f"metrics.{key}.value"] = "lm-eval gives no finite number for this metric"
    return metrics, reasons


def _no_stderr(bootstrap_iters: int, items: int) -> str:
    if not bootstrap_iters:
        return "evaluation.bootstrap_iters is 0, and then lm-eval computes no standard errors"
    return "one item has no spread" if items < 2 else "lm-eval gives no standard error for this metric"


def _stderr_key(key: str) -> str:
    metric, _, filter_name = key.partition(",")
    return f"{metric}_stderr,{filter_name}"


def _number(value: Any) -> float | None:
    """A finite float; None for what lm-eval writes where it has no number ("N/A", NaN)."""
    if isinstance(value, str) or value is None or not math.isfinite(value):
        return None
    return float(value)
