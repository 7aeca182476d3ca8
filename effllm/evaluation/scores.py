"""From lm-eval's results to the scores of an evaluation: value, standard error, interval, per task.

Standard errors are lm-eval's where it has one. For perplexities it has none, and the documents are resampled here.
"""

import math
from typing import Any

import numpy

from effllm.errors import UserError

Z95 = 1.959963984540054
_WILSON = "Wilson score interval of the share of right answers"
_NORMAL = "normal: score +- 1.96 standard errors"
_BOOTSTRAP = "percentiles of the score over resampled documents"


def summarize(results: dict[str, Any], benchmark: dict[str, Any], bootstrap_iters: int, seed: int) -> dict[str, Any]:
    """The scores of one evaluation, JSON-serialisable; what is None has its reason in `reasons`.

    `results` is what `lm_eval.evaluator.evaluate` returned with samples, `benchmark` the content of benchmark.json.
    Keys: score, stderr, stderr_source, ci95 [low, high], ci95_method, metric, items, metrics, tasks, reasons.
    `UserError` if the metric is not among the results, or is computed after several filters and none is named.
    """
    values = results["results"][benchmark["task"]]
    key = metric_key(values, benchmark["metric"], benchmark["task"])
    names = [task["name"] for task in benchmark["tasks"]]
    outcomes = [value for name in names for value in _outcomes(results["samples"][name], key)]
    score = float(values[key])
    reasons: dict[str, str] = {}
    stderr, source = _number(values.get(_stderr_key(key))), "lm-eval"
    interval, method = _interval(score, stderr, outcomes)
    if stderr is None and benchmark["role"] == "perplexity" and len(names) == 1 and bootstrap_iters:
        resampled = resample_perplexity(key.partition(",")[0], outcomes, bootstrap_iters, seed)
        stderr, source = float(resampled.std(ddof=1)), f"{bootstrap_iters} resamplings of the documents"
        interval, method = [float(edge) for edge in numpy.percentile(resampled, [2.5, 97.5])], _BOOTSTRAP
    if stderr is None:
        source = None
        reasons["stderr"] = _no_stderr(bootstrap_iters, len(outcomes))
    if interval is None:
        reasons["ci95"] = reasons["stderr"]
    metrics, missing = _all_metrics(values)
    return {
        "score": score,
        "stderr": stderr,
        "stderr_source": source,
        "ci95": interval,
        "ci95_method": method,
        "metric": key,
        "items": sum(results["n-samples"][name]["effective"] for name in names),
        "metrics": metrics,
        "tasks": {name: _task_scores(results, name, key) for name in names},
        "reasons": {**reasons, **missing},
    }


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


def wilson_interval(successes: float, trials: int) -> list[float]:
    """95 % score interval of a proportion (Wilson 1927), which has a width at 0 and at 1 too."""
    share = successes / trials
    denominator = 1 + Z95**2 / trials
    center = share + Z95**2 / (2 * trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    # At the ends the formula gives 0 and 1 but for rounding.
    low = (center - half) / denominator if successes > 0 else 0.0
    high = (center + half) / denominator if successes < trials else 1.0
    return [low, high]


def resample_perplexity(metric: str, outcomes: list[tuple[float, float]], resamples: int, seed: int) -> numpy.ndarray:
    """The metric over `resamples` bootstrap samples of (log-likelihood in nats, bytes or words) per document."""
    table = numpy.asarray(outcomes, dtype=float)
    rng = numpy.random.default_rng(seed)
    # One draw at a time: a matrix of all draws would grow with the documents times the resamples.
    draws = (table[rng.integers(len(table), size=len(table))].sum(axis=0) for _ in range(resamples))
    nats = numpy.array([-total / weight for total, weight in draws])
    return nats / math.log(2) if metric == "bits_per_byte" else numpy.exp(nats)


def _interval(score: float, stderr: float | None, outcomes: list[Any]) -> tuple[list[float] | None, str | None]:
    is_share = bool(outcomes) and all(isinstance(value, (bool, int, float)) and value in (0, 1) for value in outcomes)
    # A group that does not weight by size has another mean than its items, and no binomial interval.
    if is_share and math.isclose(sum(outcomes) / len(outcomes), score, rel_tol=0, abs_tol=1e-9):
        return wilson_interval(sum(outcomes), len(outcomes)), _WILSON
    if stderr is not None:
        return [score - Z95 * stderr, score + Z95 * stderr], _NORMAL
    return None, None


def _outcomes(samples: list[dict[str, Any]], key: str) -> list[Any]:
    metric, _, filter_name = key.partition(",")
    return [sample[metric] for sample in samples if sample["filter"] == filter_name and metric in sample]


def _task_scores(results: dict[str, Any], name: str, key: str) -> dict[str, Any]:
    values = results["results"][name]
    return {
        "score": _number(values.get(key)),
        "stderr": _number(values.get(_stderr_key(key))),
        "items": results["n-samples"][name]["effective"],
        "n_shot": results["n-shot"].get(name),
        "version": results["versions"].get(name),
    }


def _all_metrics(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    metrics, reasons = {}, {}
    for key in (key for key in values if "," in key and "_stderr," not in key):
        metrics[key] = {"value": _number(values[key]), "stderr": _number(values.get(_stderr_key(key)))}
        if metrics[key]["stderr"] is None:
            reasons[f"metrics.{key}.stderr"] = "lm-eval gives no standard error for this metric"
        if metrics[key]["value"] is None:
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
