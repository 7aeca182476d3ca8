"""How much of a study is done: what a budget may cut, and how that is said."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class TooLargeError(Exception):
    """There is no study of that size."""


@dataclass(frozen=True)
class Size:
    """How much a study does, by what a budget may change; None where it is as without a budget.

    repeats, window_s: measured windows of each workload, and the shortest. documents: of each task of a benchmark, or
    held-out samples. steps: of a fine-tuning. layers: of a decoder whose costs are measured. tokens: read
    in pretraining, for each parameter. scale: a backbone of pretraining.
    """

    repeats: int | None = None
    window_s: float | None = None
    documents: int | None = None
    steps: int | None = None
    layers: int | None = None
    tokens: float | None = None
    scale: str | None = None


@dataclass(frozen=True)
class Cut:
    """One thing that a budget may change.

    key: a field of `Size`. usual: its value without a budget. smaller: values below that, the largest first; larger:
    values above it, the largest first. said: what a value means for the study.
    """

    key: str
    usual: Any
    smaller: tuple[Any, ...]
    said: Callable[[Any], str]
    larger: tuple[Any, ...] = ()
