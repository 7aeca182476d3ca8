"""Limits on columns, and the four answers that a row gives to one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from effllm.decision.rows import Figure

Kind = Literal["max", "min"]
Answer = Literal["fits", "exceeds", "too close to call", "not measured"]
"""fits: the whole interval is within the limit. exceeds: none of it is. Only `fits` counts."""


@dataclass(frozen=True)
class Limit:
    """The most (`max`) or least (`min`) that a column may be, in its unit."""

    column: str
    kind: Kind
    bound: float

    def answer(self, figure: Figure | None) -> Answer:
        """What a figure, or the lack of one, says to the limit."""
        if figure is None:
            return "not measured"
        if self.holds(self.needed(figure)):
            return "fits"
        return "too close to call" if self.holds(self.best_end(figure)) else "exceeds"

    def holds(self, value: float) -> bool:
        """Whether one value is within the limit."""
        return value <= self.bound if self.kind == "max" else value >= self.bound

    def needed(self, figure: Figure) -> float:
        """The tightest bound that the figure fits: the worse end of its interval."""
        return figure.highest if self.kind == "max" else figure.lowest

    def best_end(self, figure: Figure) -> float:
        """The better end of its interval: where not even that holds, the figure exceeds the limit."""
        return figure.lowest if self.kind == "max" else figure.highest

    def looser(self, one: float, other: float) -> bool:
        """Whether the bound `one` lets more through than `other`."""
        return one > other if self.kind == "max" else one < other

    def factor(self, value: float) -> float | None:
        """How many times the limit a value is; None where the limit is 0."""
        return value / self.bound if self.bound else None


def answer_to_all(answers: Iterable[Answer]) -> Answer:
    """The answer to several limits: the one that rules the row out most surely."""
    given = list(answers)
    order: tuple[Answer, ...] = ("exceeds", "not measured", "too close to call")
    return next((answer for answer in order if answer in given), "fits")
