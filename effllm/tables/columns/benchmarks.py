"""The columns of Table 16: those of a benchmark's score are named by its label, all others by its id."""

from collections.abc import Iterator, Sequence

from effllm.tables.columns.shared import STATUS
from effllm.tables.description import Column, Description

_METRIC = "_metric"


def _scores(header: Sequence[str]) -> Iterator[Column]:
    """Columns under the benchmarks' labels, which come between the names and the mean in the order of their ids."""
    ids = [name.removesuffix(_METRIC) for name in header if name.endswith(_METRIC)]
    for label, id in zip(header[2 : header.index("mean")], ids, strict=False):
        interval = (f"{id}_low", f"{id}_high")
        yield Column(label, "quality", label=label, interval=interval, points=True, direction=f"{id}_better")


BENCHMARKS = Description(
    title="precisions by benchmark",
    names=("model", "precision"),
    subject="model",
    signature=("mean", "mean_low", "mean_high"),
    quality="mean",
    costs=(),
    scope=("software",),
    declared=(
        Column("model", "name"),
        Column("precision", "name"),
        Column("mean", "quality", label="mean score", better="higher", interval=("mean_low", "mean_high"), points=True),
        Column("*_metric", "condition", label="metric"),
        Column("*_chance", "condition", label="score of guessing"),
        Column("*_items", "condition", label="items"),
        Column("*_items_in_training", "condition", label="items in the training text"),
        Column("*_latency_ms", "cost", "ms", "latency of a request", "lower"),
        Column("software", "condition"),
        *STATUS,
    ),
    unfold=_scores,
)
