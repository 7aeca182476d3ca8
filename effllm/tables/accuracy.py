"""The paper's average performance: the plain mean over a table's accuracy benchmarks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from effllm.tables.artifacts import Result
from effllm.tables.cells import mean


@dataclass(frozen=True)
class Performance:
    """Mean score and its standard error, as fractions; `reason` says why the mean is None."""

    mean: float | None
    stderr: float | None
    reason: str | None


def average_performance(scores: Mapping[str, Result]) -> Performance:
    """Average over evaluations by benchmark id; a perplexity is in no mean, and without every score there is none.

    The standard error is None as well where a benchmark has none.
    """
    failed = [f"{id} is {result.status}" for id, result in scores.items() if result.content is None]
    if failed:
        return Performance(None, None, ", ".join(failed))
    accuracies = [result.content for result in scores.values() if result.content["role"] == "accuracy"]
    if not accuracies:
        return Performance(None, None, "the table has no accuracy benchmark")
    errors = [content["stderr"] for content in accuracies]
    # Benchmarks are independent samples: the variance of the mean is the mean variance over their number.
    error = None if None in errors else math.sqrt(math.fsum(e * e for e in errors)) / len(errors)
    return Performance(mean([content["score"] for content in accuracies]), error, None)
