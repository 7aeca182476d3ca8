"""Paired differences: what changed between two rows that were scored on the same items.

Both sides answer the same items, so what makes an item hard falls out of the difference, and only items on which the
sides disagree add to its error. Items of one cluster are not independent (see `effllm.intervals`).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from effllm.intervals import (
    Z95,
    correlation_of_means,
    mean_interval,
    ratio_standard_error,
    student,
    sums_by_cluster,
)

PAIRS = "pairs"
"""The name of the table of all pairs, and the end of the name of one table's own."""

Code = Literal[
    "failed",
    "invalid",
    "none_differ",
    "no_interval",
    "no_items",
    "not_measured",
    "not_positive",
    "one_cluster",
    "other_card",
    "other_conditions",
    "other_items",
]
"""Why a change or its interval is unknown; `REASONS` says each in words."""

REASONS: dict[Code, str] = {
    "failed": "a side of the pair has no result",
    "invalid": "a side of the pair is invalid",
    "none_differ": "no item differs: the bound is on the share of items that would",
    "no_interval": "a side of the pair has no interval",
    "no_items": "no record by item exists whose mean the figure is",
    "not_measured": "a side of the pair was not measured",
    "not_positive": "a ratio needs figures above zero",
    "one_cluster": "all items are of one cluster",
    "other_card": "the sides ran on two cards of one kind, which differ by a few per cent: no interval holds that",
    "other_conditions": "the sides were measured under other conditions",
    "other_items": "the sides were scored on different items",
}

RULE_OF_THREE = 3.0
"""Events that none of n trials has shown may still come in a share of 3/n, at 95 % (Hanley and Lippman-Hand 1983)."""

BONETT_PRICE = "Bonett-Price, of as many independent items as tell as much"
RULE = "rule of three over clusters"
STUDENT = "t over clusters"
MOVER = "MOVER of the benchmarks' paired intervals"
LOG_MOVER = "MOVER of both sides' own intervals, as logarithms"


def pairs_of(table: str) -> str:
    """The name of the table with the pairs of one table, whose CSV lies next to it: `table9-pairs` of `table9`."""
    return f"{table}-{PAIRS}"


@dataclass(frozen=True)
class Change:
    """A change against a baseline and its 95 % interval.

    value: difference (fraction, or nats) or ratio, None where unknown. bound: what 95 % certainty allows the share of
    differing items, and so a difference of shares, to be where none differs. differing: items whose outcome is not the
    same on both sides. code: why value or interval is None.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    method: str | None = None
    items: int | None = None
    clusters: int | None = None
    differing: int | None = None
    bound: float | None = None
    code: Code | None = None


def paired_difference(
    ours: Sequence[float], base: Sequence[float], counts: Sequence[float], clusters: Sequence[Hashable]
) -> Change:
    """sum(ours) / sum(counts) - sum(base) / sum(counts), over the same items on both sides.

    Each argument has an entry per item, in one order: the sums of a figure (an outcome, a loss in nats), what they are
    divided by (1, tokens), and the item's cluster. Outcomes that are right or wrong have Bonett and Price's interval
    (2012), whose pseudo-observations keep few differing items from looking sure; other figures Student's t over
    clusters. ValueError without items.
    """
    if not ours:
        raise ValueError("a difference needs at least one item")
    differences = [one - other for one, other in zip(ours, base, strict=True)]
    by_cluster = sums_by_cluster(differences, counts, clusters)
    groups = len(by_cluster[0])
    value = math.fsum(differences) / math.fsum(counts)
    differing = sum(1 for difference in differences if difference)
    change = Change(value, items=len(differences), clusters=groups, differing=differing)
    is_share = all(outcome in (0, 1) for side in (ours, base) for outcome in side) and set(counts) == {1}
    if not differing:
        bound = min(RULE_OF_THREE / groups, 1.0)
        if is_share:
            return replace(change, interval=(-bound, bound), method=RULE, bound=bound)
        return replace(change, bound=bound, code="none_differ")
    error = ratio_standard_error(*by_cluster)
    if error is None:
        return replace(change, code="one_cluster")
    if is_share:
        trials = _effective_items(differences, error)
        return replace(change, interval=bonett_price(differences, trials), method=BONETT_PRICE)
    reach = student(groups - 1) * error
    return replace(change, interval=(value - reach, value + reach), method=STUDENT)


def bonett_price(differences: Sequence[float], trials: float) -> tuple[float, float]:
    """95 % interval of the mean of differences of -1, 0 or 1 that tell as much as `trials` independent items."""
    scale = trials / len(differences)
    gained = (scale * sum(1 for d in differences if d > 0) + 1) / (trials + 2)
    lost = (scale * sum(1 for d in differences if d < 0) + 1) / (trials + 2)
    reach = Z95 * math.sqrt((gained + lost - (gained - lost) ** 2) / (trials + 2))
    return max(gained - lost - reach, -1.0), min(gained - lost + reach, 1.0)


def mean_change(changes: Sequence[Change], differences: Sequence[dict[Hashable, list[float]]]) -> Change:
    """The plain mean of several benchmarks' differences.

    `differences` holds [sum of the differences, items] by cluster for each: benchmarks made from the same sentences
    vary together.
    """
    values = [change.value for change in changes if change.value is not None]
    if len(values) < len(changes):
        return Change(None, code=next(change.code for change in changes if change.value is None))
    differing = sum(change.differing or 0 for change in changes)
    change = Change(
        math.fsum(values) / len(values),
        items=sum(change.items or 0 for change in changes),
        clusters=len({cluster for by_cluster in differences for cluster in by_cluster}),
        differing=differing,
    )
    intervals = [change.interval for change in changes if change.interval is not None]
    if len(intervals) < len(changes):
        return replace(change, code=next(change.code for change in changes if change.interval is None))
    correlations = [
        [1.0 if i == j else correlation_of_means(one, other) for j, other in enumerate(differences)]
        for i, one in enumerate(differences)
    ]
    low, high = mean_interval(values, intervals, correlations)
    return replace(change, interval=(low, high), method=MOVER, bound=None if differing else high)


def ratio_change(
    value: float | None,
    base: float | None,
    interval: tuple[float, float] | None,
    base_interval: tuple[float, float] | None,
) -> Change:
    """value / base, with the interval that both sides' own intervals give (Donner and Zou 2012, on logarithms)."""
    if value is None or base is None:
        return Change(None, code="not_measured")
    if value <= 0 or base <= 0:
        return Change(None, code="not_positive")
    ratio = value / base
    if interval is None or base_interval is None:
        return Change(ratio, code="no_interval")
    edges = (*interval, *base_interval)
    if min(edges) <= 0:
        return Change(ratio, code="not_positive")
    low = math.hypot(math.log(value / interval[0]), math.log(base_interval[1] / base))
    high = math.hypot(math.log(interval[1] / value), math.log(base / base_interval[0]))
    return Change(ratio, (ratio * math.exp(-low), ratio * math.exp(high)), LOG_MOVER)


def _effective_items(differences: Sequence[float], error: float) -> float:
    """How many independent items tell as much (Kish's design effect); their number where none share a cluster."""
    plain = ratio_standard_error(differences, [1] * len(differences))
    return len(differences) / max((error / plain) ** 2, 1.0) if plain else float(len(differences))
