"""The fit of Hoffmann et al. (arXiv 2203.15556, appendix D.3): Huber loss between logarithms, terms in log-sum-exp.

    min over e, a, b, alpha, beta of sum_i Huber_1e-3(LSE(e, a - alpha log N_i, b - beta log D_i) - log L_i)

The objective has local minima, so it is minimised from a grid of starts. All starts, and all data sets of a bootstrap,
go down together by damped, reweighted Gauss-Newton steps in one array; L-BFGS finishes the best of a single fit.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize

from effllm.scaling.law import Design, Law

DELTA = 1e-3
"""Where the Huber loss turns from a square into an absolute value, in the logarithm of the loss."""
EXPONENTS = (1e-3, 3.0)
"""Bounds of the exponents: a fit that ends at one has found no power law."""
# E and the terms at the middle of the data are at least the loss times exp of this, which is nothing.
_NOTHING = -14.0
_START_EXPONENTS = (0.1, 0.3, 0.6, 1.2)
_START_OFFSETS = (0.15, 0.4, 0.65, 0.9)
_START_SHARES = (0.15, 0.5, 0.85)
_STEPS, _STEPS_OF_STARTS = 80, 40
_FINISHED = 3


@dataclass(frozen=True)
class Fit:
    """A fitted law, what it leaves of the logarithms of the losses, and its parameters as the minimiser has them.

    parameters: (1 + 2 laws,), in features without their means. objective: sum of Huber losses, in `DELTA` squared.
    """

    law: Law
    residuals: np.ndarray
    objective: float
    parameters: np.ndarray

    @property
    def at_bound(self) -> bool:
        """Whether an exponent ended at a bound, so that the losses follow no power law."""
        exponents = self.law.exponents
        return bool(np.any((exponents <= EXPONENTS[0] * 1.01) | (exponents >= EXPONENTS[1] * 0.999)))


def fit(design: Design) -> Fit:
    """The law of least Huber loss."""
    x, centre = _centred(design)
    y = np.log(design.points.losses)
    starts = _starts(len(x), y)
    found, objectives = _descend(starts, x, np.broadcast_to(y, (len(starts), len(y))), _STEPS_OF_STARTS)
    (low,), (high,) = _bounds(len(x), y[None])
    best = found[np.argmin(objectives)]
    least = np.inf
    for start in found[np.argsort(objectives)[:_FINISHED]]:
        ended = minimize(
            _objective_and_slope,
            start,
            args=(x, y),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low, high, strict=True)),
            options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10},
        )
        # The descent may have ended lower: a Huber loss has kinks that L-BFGS does not pass.
        for parameters in (start, ended.x):
            objective = _objective_and_slope(parameters, x, y)[0]
            if objective < least:
                best, least = parameters, objective
    residuals = y - _predicted(best[None], x)[0][0]
    return Fit(_law(best, centre), residuals, float(least), best)


def refit(design: Design, fitted: Fit, log_losses: np.ndarray) -> Law:
    """The laws of other losses at the same places, (data sets, points) in logarithms; each begins at the fitted one.

    A second start has the offset and exponents of the middle of the grid, and the better end counts.
    """
    x, centre = _centred(design)
    laws = len(x)
    second = fitted.parameters.copy()
    second[-laws:] = 0.3
    ends = [
        _descend(np.broadcast_to(start, (len(log_losses), len(start))), x, log_losses, _STEPS)
        for start in (fitted.parameters, second)
    ]
    found = np.where((ends[0][1] <= ends[1][1])[:, None], ends[0][0], ends[1][0])
    return _law(found, centre)


def _centred(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Features without their means: with them, factors and exponents are hard to tell apart."""
    features = design.features
    centre = features.mean(axis=1)
    return features - centre[:, None], centre


def _law(parameters: np.ndarray, centre: np.ndarray) -> Law:
    laws = len(centre)
    offset, factors, exponents = parameters[..., 0], parameters[..., 1 : 1 + laws], parameters[..., 1 + laws :]
    # What is nothing beside the loss is written as nothing.
    e = np.where(offset < _NOTHING / 2, 0.0, np.exp(offset))
    return Law(e, np.exp(factors + exponents * centre), exponents)


def _starts(laws: int, y: np.ndarray) -> np.ndarray:
    middle = float(np.mean(y))
    starts = []
    for offset, *rest in product(_START_OFFSETS, *([_START_EXPONENTS] * laws), *([_START_SHARES] * (laws - 1))):
        exponents, shares = rest[:laws], rest[laws:]
        parts = [shares[0], 1 - shares[0]] if shares else [1.0]
        starts.append([middle + np.log(offset), *(middle + np.log((1 - offset) * np.array(parts))), *exponents])
    return np.array(starts)


def _bounds(laws: int, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest parameters for each row of `y`, (sets, parameters)."""
    least, most = y.min(axis=1, keepdims=True), y.max(axis=1, keepdims=True)
    ones = np.ones_like(least)
    low = np.hstack([least + _NOTHING] * (1 + laws) + [EXPONENTS[0] * ones] * laws)
    high = np.hstack([least, *[most + 1.0] * laws, *[EXPONENTS[1] * ones] * laws])
    return low, high


def _predicted(parameters: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the loss, (sets, points), and the share of each term in it, (sets, 1 + laws, points)."""
    laws = len(x)
    factors, exponents = parameters[:, 1 : 1 + laws, None], parameters[:, 1 + laws :, None]
    terms = np.concatenate([np.repeat(parameters[:, :1, None], x.shape[1], axis=2), factors - exponents * x], axis=1)
    top = terms.max(axis=1, keepdims=True)
    shares = np.exp(terms - top)
    total = shares.sum(axis=1, keepdims=True)
    return (top + np.log(total))[:, 0], shares / total


def _slopes(shares: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Derivatives of the predicted logarithm by the parameters, (sets, parameters, points)."""
    return np.concatenate([shares, -shares[:, 1:] * x], axis=1)


def _huber(residuals: np.ndarray) -> np.ndarray:
    size = np.abs(residuals)
    return np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum(axis=-1)


def _objective_and_slope(parameters: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    predicted, shares = _predicted(parameters[None], x)
    residuals = predicted - y
    slope = _slopes(shares, x)[0] @ np.clip(residuals[0], -DELTA, DELTA)
    # In units in which L-BFGS's tolerances mean something.
    return float(_huber(residuals)[0]) / DELTA**2, slope / DELTA**2


def _descend(starts: np.ndarray, x: np.ndarray, y: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and objective after damped Gauss-Newton steps with Huber's weights, row by row of `y`.

    Objectives are in units of `DELTA` squared. A step that lowers a row's objective is taken and its damping eased; any
    other is not, and the damping grows.
    """
    low, high = _bounds(len(x), y)
    rows = np.clip(starts, low, high)
    predicted, shares = _predicted(rows, x)
    objectives = _huber(predicted - y)
    damping = np.full(len(rows), 1e-2)
    going = np.arange(len(rows))
    for _ in range(steps):
        residuals, slopes = predicted[going] - y[going], _slopes(shares[going], x)
        weighted = slopes * np.minimum(1.0, DELTA / np.maximum(np.abs(residuals), 1e-12))[:, None]
        curvature = weighted @ slopes.transpose(0, 2, 1)
        slope = (weighted @ residuals[:, :, None])[:, :, 0]
        diagonal = np.einsum("sii->si", curvature)
        scale = diagonal + 1e-9 * diagonal.max(axis=1, keepdims=True) + 1e-300
        damped = curvature + np.eye(curvature.shape[1]) * (damping[going, None] * scale)[:, :, None]
        trial = np.clip(rows[going] - np.linalg.solve(damped, slope[:, :, None])[:, :, 0], low[going], high[going])
        new_predicted, new_shares = _predicted(trial, x)
        new = _huber(new_predicted - y[going])
        is_lower = new < objectives[going]
        gained = (objectives[going] - new) > 1e-7 * objectives[going]
        taken = going[is_lower]
        rows[taken], objectives[taken] = trial[is_lower], new[is_lower]
        predicted[taken], shares[taken] = new_predicted[is_lower], new_shares[is_lower]
        damping[going] = np.clip(damping[going] * np.where(is_lower, 0.3, 6.0), 1e-9, 1e9)
        # A row ends where steps change nothing any more, or none lowers it however short.
        going = going[gained | (~is_lower & (damping[going] < 1e6)) | (is_lower & (damping[going] > 1e-3))]
        if not len(going):
            break
    return rows, objectives / DELTA**2
