"""The paper's average performance: the plain mean over a table's accuracy benchmarks."""

from collections.abc import Mapping
from dataclasses import dataclass

from effllm.intervals import correlation_of_means, mean_interval
from effllm.results.evaluation import Clusters, Evaluation
from effllm.tables.artifacts import Result
from effllm.tables.cells import Cell, Row, mean


@dataclass(frozen=True)
class Performance:
    """Mean score and its 95 % interval, as fractions; the reasons say why either is None."""

    mean: float | None
    reason: str | None
    ci95: list[float] | None = None
    reason_ci95: str | None = None

    def set_interval(self, row: Row, column: str) -> None:
        """Fill `<column>_low` and `<column>_high`."""
        low, high = self.ci95 or (None, None)
        row.set(f"{column}_low", low, self.reason or self.reason_ci95)
        row.set(f"{column}_high", high, self.reason or self.reason_ci95)


def average_performance(scores: Mapping[str, Result[Evaluation]]) -> Performance:
    """Average over evaluations by benchmark id; a perplexity is in no mean, and without every score there is none.

    The interval is made of the benchmarks' own intervals and of how far benchmarks whose items were made from the same
    sentences vary together; without every interval there is none.
    """
    contents = {id: result.content for id, result in scores.items() if result.content is not None}
    failed = [f"{id} is {result.status}" for id, result in scores.items() if id not in contents]
    if failed:
        return Performance(None, ", ".join(failed))
    accuracies = {id: content for id, content in contents.items() if content.role == "accuracy"}
    if not accuracies:
        return Performance(None, "the table has no accuracy benchmark")
    means = [evaluation.score for evaluation in accuracies.values()]
    intervals = {id: evaluation.ci95 for id, evaluation in accuracies.items() if evaluation.ci95 is not None}
    unsure = [id for id in accuracies if id not in intervals]
    if unsure:
        return Performance(mean(means), None, None, f"{', '.join(unsure)} has no interval")
    correlations = _correlations([scores[id] for id in accuracies])
    return Performance(mean(means), None, mean_interval(means, list(intervals.values()), correlations))


def better(evaluation: Result[Evaluation]) -> Cell:
    """Which way the benchmark's metric is better: `higher`, or `lower` as of a perplexity."""
    if evaluation.content is None:
        return None, f"{evaluation.status}: {evaluation.reason}"
    return ("higher" if evaluation.content.higher_is_better else "lower"), None


def _correlations(results: list[Result[Evaluation]]) -> list[list[float]]:
    clusters = [_clusters(result) for result in results]
    return [
        [1.0 if i == j else correlation_of_means(one, other) for j, other in enumerate(clusters)]
        for i, one in enumerate(clusters)
    ]


def _clusters(result: Result[Evaluation]) -> dict[str, list[float]]:
    """[sum of the metric, items] by the sentence that items were made from; empty where items name none."""
    if result.content is None or result.content.clusters is None:
        return {}
    result.artifact.verify_file(Clusters.FILE)
    return Clusters.read(result.artifact.directory).root
