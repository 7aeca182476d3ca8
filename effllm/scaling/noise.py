"""How far losses lie from their laws by chance, and data sets that chance might have drawn instead."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effllm.scaling.fit import Fit
from effllm.scaling.law import Design


@dataclass(frozen=True)
class Spread:
    """A sum of squared residuals and its degrees of freedom; none of these say nothing of the spread."""

    squares: float
    freedom: int

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self.squares + other.squares, self.freedom + other.freedom)

    def draws(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Standard deviations that the residuals allow, (count,): few degrees of freedom allow large ones."""
        if not self.freedom:
            return np.zeros(count)
        return np.sqrt(self.squares / generator.chisquare(self.freedom, count))


@dataclass(frozen=True)
class Noise:
    """Of the logarithms of losses: between runs, which all points of a run share, and between points of a run."""

    runs: Spread
    points: Spread

    def __add__(self, other: "Noise") -> "Noise":
        return Noise(self.runs + other.runs, self.points + other.points)


NO_NOISE = Noise(Spread(0.0, 0), Spread(0.0, 0))


def noise_of(design: Design, fitted: Fit) -> Noise:
    """What the residuals of one fit say.

    A law takes as many degrees of freedom as it has parameters. Where runs have several points, B and beta are taken
    from the points within runs, and the others from the means of runs.
    """
    residuals, runs = fitted.residuals, _numbered(design.points.runs)
    parameters, count = len(fitted.parameters), int(runs.max()) + 1
    if count == len(residuals):
        return Noise(Spread(float(residuals @ residuals), max(0, count - parameters)), Spread(0.0, 0))
    means = np.bincount(runs, residuals) / np.bincount(runs)
    within = residuals - means[runs]
    own = 2 if design.kind in ("both", "tokens") else 0
    return Noise(
        Spread(float(means @ means), max(0, count - (parameters - own))),
        Spread(float(within @ within), max(0, len(residuals) - count - own)),
    )


def redrawn(
    design: Design, fitted: Fit, spreads: tuple[np.ndarray, np.ndarray], generator: np.random.Generator
) -> np.ndarray:
    """Logarithms of losses as the fitted law and chance would give them, (draws, points).

    spreads: standard deviations of each draw between runs and between points.
    """
    runs = _numbered(design.points.runs)
    expected = np.log(design.points.losses) - fitted.residuals
    between, within = spreads
    of_runs = generator.standard_normal((len(between), int(runs.max()) + 1))[:, runs]
    of_points = generator.standard_normal((len(within), len(runs)))
    return expected + between[:, None] * of_runs + within[:, None] * of_points


def _numbered(runs: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.unique(runs, return_inverse=True)[1]
