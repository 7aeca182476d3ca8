"""The law and its parts: what sizes and token counts let one identify, and what a fitted law says elsewhere."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["both", "size", "tokens", "path"]
"""What is fitted. both: E + A/N^alpha + B/D^beta. size: E + A/N^alpha at one D. tokens: E + B/D^beta at one N. path:
E + A/N^alpha where D follows N by a power."""

LEAST = 3
"""Points, and different sizes or token counts, without which no exponent is fitted."""
# Counts that differ by less are one: variants of an architecture pad their layers.
_SAME = 0.01
# Of log D's variance, what log N must leave unexplained before the two are told apart.
_LEAST_OWN_VARIANCE = 0.01


@dataclass(frozen=True)
class Points:
    """Losses in nats per token by parameters and tokens, each array (points,); `runs` numbers the run of each."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    runs: np.ndarray

    def __len__(self) -> int:
        return len(self.losses)

    def where(self, mask: np.ndarray) -> "Points":
        """The points that `mask` keeps."""
        return Points(self.parameters[mask], self.tokens[mask], self.losses[mask], self.runs[mask])

    def finite(self) -> "Points":
        """Without points of which a number is missing, infinite or not positive."""
        columns = np.stack([self.parameters, self.tokens, self.losses])
        return self.where(np.all(np.isfinite(columns) & (columns > 0), axis=0))


@dataclass(frozen=True)
class Design:
    """What can be identified, and from which points.

    fixed: N or D that all points share (`tokens`, `size`). path: D = factor * N^exponent, as (factor, exponent).
    """

    kind: Kind
    points: Points
    fixed: float | None = None
    path: tuple[float, float] | None = None

    @property
    def features(self) -> np.ndarray:
        """Logarithms that the power laws are in, (laws, points)."""
        size, tokens = np.log(self.points.parameters), np.log(self.points.tokens)
        return np.stack({"both": [size, tokens], "tokens": [tokens]}.get(self.kind, [size]))

    def at(self, parameters: float, tokens: float) -> tuple[float, float]:
        """The nearest to a size and a token count that the law speaks of."""
        if self.kind == "size":
            return parameters, float(self.fixed or 0)
        if self.kind == "tokens":
            return float(self.fixed or 0), tokens
        if self.path:
            factor, exponent = self.path
            return parameters, factor * parameters**exponent
        return parameters, tokens

    def feature_at(self, parameters: float, tokens: float) -> np.ndarray:
        """`features` of one place, (laws,)."""
        size, token = math.log(parameters), math.log(tokens)
        return np.array({"both": [size, token], "tokens": [token]}.get(self.kind, [size]))


def identify(points: Points) -> Design | str:
    """The largest part of the law that the points identify, or why there is none.

    Where sizes and token counts both vary and tell alpha from beta, it is the whole law. Otherwise it is the part of
    the sizes among points of equal tokens, or of the tokens among points of equal size, and the other points are left
    out; or a law along the path on which N and D grow together.
    """
    if len(points) < LEAST:
        return f"a law needs {LEAST} points, and there are {len(points)}"
    size, tokens = _levels(points.parameters), _levels(points.tokens)
    sizes, counts = len(set(size)), len(set(tokens))
    explained = _explained(np.log(points.parameters), np.log(points.tokens))
    together = explained > 1 - _LEAST_OWN_VARIANCE
    places = len(set(zip(size, tokens, strict=True)))
    if sizes >= LEAST and counts >= LEAST and places >= 5 and not together:
        return Design("both", points)
    if (subset := _largest(points, tokens, size, points.tokens)) is not None:
        return Design("size", subset, fixed=_geometric_mean(subset.tokens))
    if (subset := _largest(points, size, tokens, points.parameters)) is not None:
        return Design("tokens", subset, fixed=_geometric_mean(subset.parameters))
    if sizes >= LEAST and counts >= LEAST and together:
        exponent, factor = np.polyfit(np.log(points.parameters), np.log(points.tokens), 1)
        return Design("path", points, path=(math.exp(factor), float(exponent)))
    return f"{sizes} sizes and {counts} token counts identify no exponent: it takes {LEAST} of one at one of the other"


@dataclass(frozen=True)
class Law:
    """A fitted law: `offset` is E, `factors` and `exponents` are A and alpha, B and beta as far as they are fitted.

    Each may be an array of draws, then all of one length.
    """

    offset: np.ndarray
    factors: np.ndarray
    exponents: np.ndarray

    def loss(self, feature: np.ndarray) -> np.ndarray:
        """Loss in nats per token where `Design.features` are `feature`, (laws,) or (laws, places)."""
        terms = np.exp(np.log(self.factors) - self.exponents * feature.T)
        return self.offset + terms.sum(axis=-1)


def best_tokens(law: Law, parameters: float) -> np.ndarray:
    """D at which N parameters lower the loss as much per FLOP as more tokens would; of a whole law.

    With C = 6 N D, the least of A/N^alpha + B/D^beta has alpha A/N^alpha = beta B/D^beta.
    """
    (log_a, log_b), (alpha, beta) = np.log(law.factors).T, law.exponents.T
    log_tokens = (np.log(beta) + log_b - np.log(alpha) - log_a + alpha * math.log(parameters)) / beta
    return np.exp(np.minimum(log_tokens, 300.0))


def _levels(values: np.ndarray) -> list[int]:
    """For each value the number of its level: values within `_SAME` of the lowest of a level are one."""
    order = np.argsort(values)
    levels = np.zeros(len(values), dtype=int)
    lowest = values[order[0]]
    level = 0
    for index in order:
        if values[index] > lowest * (1 + _SAME):
            level, lowest = level + 1, values[index]
        levels[index] = level
    return levels.tolist()


def _largest(points: Points, held: list[int], varied: list[int], value: np.ndarray) -> Points | None:
    """Of the points that share `held`, those with the most levels of `varied`; at a draw those of the largest value."""
    found = {level: {v for h, v in zip(held, varied, strict=True) if h == level} for level in set(held)}
    rank: Callable[[int], tuple[int, float]] = lambda level: (  # noqa: E731
        len(found[level]),
        float(value[np.array(held) == level].max()),
    )
    best = max(found, key=rank)
    return points.where(np.array(held) == best) if len(found[best]) >= LEAST else None


def _explained(x: np.ndarray, y: np.ndarray) -> float:
    """Squared correlation; 0 where either does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))
