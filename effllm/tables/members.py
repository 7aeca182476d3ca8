"""Rows of a table as sides of a pair: what was recorded of each item by item."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from effllm.tables.items import Items, compare, compare_mean
from effllm.tables.paired import Change, Code

MEANS = ("average_performance", "mean")


@dataclass(frozen=True)
class Member(ABC):
    """One row of a table: where it is, and where the row that it is compared with is."""

    index: int
    against: int

    @abstractmethod
    def change(self, column: str, base: Any) -> Change | None:
        """The paired change of a quality against another member; None where no record by item tells of it."""


@dataclass(frozen=True)
class Trained(Member):
    """A row of Tables 3 to 8, with its held-out losses in nats per token."""

    held_out: Items | Code

    def change(self, column: str, base: "Trained") -> Change | None:
        """Of the loss, and of the perplexity, which is a ratio."""
        if column == "held_out_loss":
            return compare(self.held_out, base.held_out)
        return _exponential(compare(self.held_out, base.held_out)) if column == "PPL" else None


@dataclass(frozen=True)
class Scored(Member):
    """A row of Tables 9 and 16, with its answers by column; `mean` are the columns that the mean is over."""

    answers: Mapping[str, Items | Code]
    mean: tuple[str, ...]

    def change(self, column: str, base: "Scored") -> Change | None:
        """Of one benchmark's score, or of their mean."""
        if column in MEANS:
            return compare_mean(*([side.answers[name] for name in self.mean] for side in (self, base)))
        return compare(self.answers[column], base.answers[column])


def _exponential(change: Change) -> Change:
    """The ratio of perplexities that a difference of losses is."""
    if change.value is None:
        return change
    interval = (math.exp(change.interval[0]), math.exp(change.interval[1])) if change.interval else None
    return replace(change, value=math.exp(change.value), interval=interval)
