"""The fit against known exponents and independent minimisers, and what data do not identify."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize_scalar
from scipy.special import huber

from effllm.scaling.fit import DELTA, Fit, fit, refit
from effllm.scaling.law import Design, Law, Points, best_tokens, identify

E, A, ALPHA, B, BETA = 1.69, 406.4, 0.34, 410.7, 0.28
SIZES, TOKENS = (5e7, 1.25e8, 3.5e8, 1e9), (1e9, 4e9, 16e9)


def points(sizes: Any, tokens: Any, noise: float = 0.0, seed: int = 0) -> Points:
    """One run for each size, with tokens of its own or alike, as Hoffmann et al.'s law has it."""
    n, d = (np.array(each, dtype=float) for each in np.broadcast_arrays(sizes, tokens))
    scatter = np.random.default_rng(seed).standard_normal(len(n))
    return Points(n, d, (E + A / n**ALPHA + B / d**BETA) * np.exp(noise * scatter), np.arange(len(n)))


def grid(sizes: Any, tokens: Any, noise: float = 0.0) -> Points:
    """A run at each size and token count."""
    return points(np.repeat(sizes, len(tokens)), np.tile(tokens, len(sizes)), noise)


def fitted(found: Points) -> tuple[Design, Fit]:
    design = identify(found)
    assert isinstance(design, Design), design
    return design, fit(design)


def hubers(design: Design, law: Law) -> float:
    """The objective, by scipy's own Huber loss and the law as it is written."""
    points = design.points
    return float(huber(DELTA, np.log(law.loss(design.features)) - np.log(points.losses)).sum()) / DELTA**2


def test_the_whole_law_is_found_again() -> None:
    design, found = fitted(grid(SIZES, TOKENS))
    assert design.kind == "both" and not found.at_bound
    law = found.law
    values = [float(law.offset), *law.factors, *law.exponents]
    assert values == pytest.approx([E, A, B, ALPHA, BETA], rel=1e-3)


@pytest.mark.parametrize(
    ("sizes", "tokens", "kind", "offset", "exponent"),
    [
        (SIZES, 5e9, "size", E + B / 5e9**BETA, ALPHA),
        ((1e8,) * 4, (1e9, 2e9, 4e9, 8e9), "tokens", E + A / 1e8**ALPHA, BETA),
    ],
)
def test_the_part_that_varies_is_found_again(
    sizes: Any, tokens: Any, kind: str, offset: float, exponent: float
) -> None:
    design, found = fitted(points(sizes, tokens))
    assert design.kind == kind
    assert float(found.law.offset) == pytest.approx(offset, rel=1e-3)
    assert found.law.exponents.tolist() == pytest.approx([exponent], rel=1e-3)
    assert design.at(7e9, 1e11) == pytest.approx((7e9, 5e9) if kind == "size" else (1e8, 1e11))


def test_sizes_and_tokens_that_grow_together_are_a_path() -> None:
    sizes = np.array([5e7, 1e8, 2e8, 4e8, 8e8])
    design, found = fitted(points(sizes, 20 * sizes))
    assert design.kind == "path" and design.path == pytest.approx((20, 1))
    # A/N^alpha + B/(20 N)^beta is nearly one power, between the two.
    assert BETA < found.law.exponents[0] < ALPHA
    assert design.at(1e9, 1e9) == pytest.approx((1e9, 2e10))
    assert float(found.law.loss(design.feature_at(1e9, 2e10))) == pytest.approx(
        E + A / 1e9**ALPHA + B / 2e10**BETA, rel=1e-3
    )


def test_least_squares_agrees_without_noise() -> None:
    """An unweighted fit of the losses themselves, by another algorithm from another start."""
    found = grid(SIZES, TOKENS)

    def residuals(p: np.ndarray) -> np.ndarray:
        return p[0] + np.exp(p[1]) / found.parameters ** p[2] + np.exp(p[3]) / found.tokens ** p[4] - found.losses

    other = least_squares(residuals, [1.0, 5.0, 0.3, 5.0, 0.3], xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=5000).x
    law = fitted(found)[1].law
    ours = [float(law.offset), np.log(law.factors[0]), law.exponents[0], np.log(law.factors[1]), law.exponents[1]]
    assert ours == pytest.approx(other.tolist(), rel=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_no_grid_finds_a_lower_huber_loss(seed: int) -> None:
    """Brute force over alpha and E, and over A in between."""
    design, found = fitted(points((*SIZES, 2e9), 5e9, noise=0.003, seed=seed))
    losses, sizes = design.points.losses, design.points.parameters
    assert hubers(design, found.law) == pytest.approx(found.objective, rel=1e-6)

    def objective(log_a: float, offset: float, alpha: float) -> float:
        return float(huber(DELTA, np.log(offset + np.exp(log_a) / sizes**alpha) - np.log(losses)).sum()) / DELTA**2

    least = np.inf
    for alpha in np.linspace(0.05, 1.5, 40):
        for offset in np.linspace(0.02, 0.999, 40) * losses.min():
            middle = float(np.median(np.log(losses - offset) + alpha * np.log(sizes)))
            ended = minimize_scalar(
                objective, args=(offset, alpha), bounds=(middle - 1, middle + 1), method="bounded",
                options={"maxiter": 12},
            )  # fmt: skip
            least = min(least, ended.fun)
    assert found.objective <= least


def test_data_sets_that_go_down_together_end_where_single_fits_end() -> None:
    design, found = fitted(grid(SIZES, TOKENS, noise=0.003))
    drawn = np.log(design.points.losses) + 0.003 * np.random.default_rng(1).standard_normal((6, len(design.points)))
    laws = refit(design, found, drawn)
    for at, log_losses in enumerate(drawn):
        one = Design("both", Points(design.points.parameters, design.points.tokens, np.exp(log_losses), np.arange(12)))
        law = Law(laws.offset[at], laws.factors[at], laws.exponents[at])
        assert hubers(one, law) <= 1.02 * fit(one).objective


def test_what_too_few_points_do_not_identify() -> None:
    assert identify(points(SIZES[:2], 1e9)) == "a law needs 3 points, and there are 2"
    same = identify(points((1e8,) * 5, 1e9))
    assert same == "1 sizes and 1 token counts identify no exponent: it takes 3 of one at one of the other"
    # Two sizes at three token counts: beta alone, from those of the larger size.
    design = identify(grid(SIZES[:2], TOKENS))
    assert isinstance(design, Design) and design.kind == "tokens" and design.fixed == pytest.approx(SIZES[1])
    # Three sizes at two token counts: alpha alone, from those of more tokens.
    design = identify(grid(SIZES, TOKENS[:2]))
    assert isinstance(design, Design) and design.kind == "size" and design.fixed == pytest.approx(TOKENS[1])


def test_rows_without_numbers_are_left_out_and_rows_that_repeat_change_nothing() -> None:
    good = grid(SIZES, TOKENS)
    bad = Points(
        np.append(good.parameters, [1e8, np.nan, 1e8, 0.0]),
        np.append(good.tokens, [1e9, 1e9, np.inf, 1e9]),
        np.append(good.losses, [np.nan, 3.0, 3.0, 3.0]),
        np.arange(16),
    )
    assert len(bad.finite()) == 12
    twice = np.tile(np.arange(12), 2)
    repeated = Points(good.parameters[twice], good.tokens[twice], good.losses[twice], np.arange(24))
    laws = [fitted(each)[1].law for each in (good, bad.finite(), repeated)]
    for law in laws[1:]:
        assert law.exponents.tolist() == pytest.approx(laws[0].exponents.tolist(), rel=1e-3)
    thrice = good.where(np.zeros(3, dtype=int))
    assert isinstance(identify(thrice), str)


def test_losses_that_follow_no_power_end_at_a_bound() -> None:
    sizes = np.array(SIZES)
    falling = Points(sizes, np.full(4, 1e9), np.array([4.0, 2.0, 2.0, 2.0]), np.arange(4))
    assert fitted(falling)[1].at_bound


def test_the_best_tokens_are_those_of_least_loss_at_equal_compute() -> None:
    law = Law(np.array(E), np.array([A, B]), np.array([ALPHA, BETA]))
    size = 1e9
    tokens = float(best_tokens(law, size))
    budget = size * tokens

    def loss(log_n: float) -> float:
        return float(law.loss(np.array([log_n, np.log(budget) - log_n])))

    ended = minimize_scalar(loss, bounds=(np.log(1e7), np.log(1e11)), method="bounded", options={"xatol": 1e-9})
    assert np.exp(ended.x) == pytest.approx(size, rel=1e-3)
