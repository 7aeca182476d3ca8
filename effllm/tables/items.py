"""Outcomes item by item, from the records of evaluations and trainings, to be paired with another row's."""

import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from effllm.errors import UserError
from effllm.intervals import sums_by_cluster
from effllm.results.evaluation import Evaluation
from effllm.tables.artifacts import Result
from effllm.tables.paired import Change, Code, mean_change, paired_difference

SAMPLES = "records/samples.jsonl"
HELD_OUT = "records/held_out.parquet"


@dataclass(frozen=True)
class Items:
    """One figure of one row by item.

    keys: what an item is, equal on two sides that answered the same items. sums over counts add up to the figure:
    outcomes over 1, or nats over tokens or bytes. clusters: what each item was made from.
    """

    keys: tuple[Hashable, ...]
    sums: tuple[float, ...]
    counts: tuple[float, ...]
    clusters: tuple[Hashable, ...]

    def mean(self) -> float:
        """The figure that these items give."""
        return math.fsum(self.sums) / math.fsum(self.counts)


def compare(ours: Items | Code, base: Items | Code) -> Change:
    """The paired difference of two sides; its code where they cannot be paired."""
    if isinstance(ours, str):
        return Change(None, code=ours)
    if isinstance(base, str):
        return Change(None, code=base)
    if ours.keys != base.keys or ours.counts != base.counts:
        return Change(None, code="other_items")
    return paired_difference(ours.sums, base.sums, ours.counts, ours.clusters)


def compare_mean(ours: Sequence[Items | Code], base: Sequence[Items | Code]) -> Change:
    """The same for the plain mean over benchmarks."""
    changes = [compare(one, other) for one, other in zip(ours, base, strict=True)]
    differences = []
    for one, other, change in zip(ours, base, changes, strict=True):
        if change.value is not None and isinstance(one, Items) and isinstance(other, Items):
            gained = [mine - theirs for mine, theirs in zip(one.sums, other.sums, strict=True)]
            totals = sums_by_cluster(gained, one.counts, one.clusters)
            differences.append(
                dict(zip(dict.fromkeys(one.clusters), map(list, zip(*totals, strict=True)), strict=True))
            )
    return mean_change(changes, differences)


def items_of_evaluation(result: Result[Evaluation]) -> Items | Code:
    """The answers of one evaluation, by item.

    A score that is no mean of its items' outcomes, such as that of a group which does not weight by size, is
    `no_items`.
    """
    if result.content is None:
        return "failed"
    if not result.artifact.has_record(SAMPLES):
        return "no_items"
    result.artifact.verify_record(SAMPLES)
    metric, _, filter_name = result.content.metric.partition(",")
    rows = [row for row in _lines(result) if row.get("filter") == filter_name and metric in row]
    outcomes = [row[metric] for row in rows]
    keys = tuple((row["task"], row["doc_id"], row["doc_hash"]) for row in rows)
    # An item that names no cluster stands for itself, and shares it with no other benchmark.
    clusters = tuple(row.get("cluster", key) for row, key in zip(rows, keys, strict=True))
    parts = _parts(outcomes, metric)
    if not rows or parts is None:
        return "no_items"
    items = Items(keys, *parts, clusters)
    return items if math.isclose(items.mean(), result.content.score, rel_tol=1e-6, abs_tol=1e-9) else "no_items"


def items_of_pretraining(results: Sequence[Result]) -> Items | Code:
    """Losses by held-out document in nats, the mean over the seeds of a row."""
    return _over_seeds([_losses(result, "document", lambda document: document) for result in results])


def items_of_diffusion(results: Sequence[Result]) -> Items | Code:
    """Losses by held-out image over the draws that all runs share, the mean over the seeds of a row."""
    return _over_seeds([_losses(result, "image", lambda image: image, "loss", None) for result in results])


def items_of_finetuning(result: Result) -> Items | Code:
    """Losses of the answers by held-out sample in nats; answers to one prompt are one cluster."""
    # "<prompt>#2" is the prompt again, with another answer.
    return _losses(result, "sample", lambda sample: str(sample).partition("#")[0])


def items_of_tuning(result: Result) -> Items | Code:
    """Losses by held-out sample over the times that all runs share."""
    return _losses(result, "sample", lambda sample: sample, "loss", None)


def _losses(
    result: Result, key: str, cluster: Callable[[Any], Hashable], loss: str = "nll", count: str | None = "tokens"
) -> Items | Code:
    """The column `loss` of a training's record, over `count`, or over 1 where that is None."""
    if result.content is None:
        return "failed"
    if not result.artifact.has_record(HELD_OUT):
        return "no_items"
    result.artifact.verify_record(HELD_OUT)
    columns = pq.read_table(result.artifact.directory / HELD_OUT, columns=[key, loss, *([count] if count else [])])
    names = tuple(columns[key].to_pylist())
    counts = tuple(columns[count].to_pylist()) if count else (1.0,) * len(names)
    return Items(names, tuple(columns[loss].to_pylist()), counts, tuple(map(cluster, names)))


def _over_seeds(sides: Sequence[Items | Code]) -> Items | Code:
    first, *others = sides
    if isinstance(first, str):
        return first
    seeds = [first]
    for side in others:
        if isinstance(side, str):
            return side
        seeds.append(side)
        if side.keys != first.keys or side.counts != first.counts:
            return "other_items"
    sums = tuple(math.fsum(values) / len(seeds) for values in zip(*(side.sums for side in seeds), strict=True))
    return Items(first.keys, sums, first.counts, first.clusters) if others else first


def _parts(outcomes: list[Any], metric: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Sums and counts of the outcomes; None where the metric is no ratio of sums."""
    if all(isinstance(outcome, bool | int | float) for outcome in outcomes):
        return tuple(map(float, outcomes)), (1.0,) * len(outcomes)
    if metric == "bits_per_byte" and all(isinstance(outcome, list) and len(outcome) == 2 for outcome in outcomes):
        return tuple(-nats / math.log(2) for nats, _ in outcomes), tuple(float(size) for _, size in outcomes)
    return None


def _lines(result: Result) -> list[dict[str, Any]]:
    path = result.artifact.directory / SAMPLES
    try:
        return [json.loads(line) for line in path.read_text().split("\n") if line]
    except ValueError as error:
        raise UserError(f"{path} is not JSON line by line ({error}): delete {path.parents[1]} and run again.") from None
