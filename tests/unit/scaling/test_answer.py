"""Intervals that hold what they should, ranks with their probabilities, and what cannot be said."""

from typing import Any

import numpy as np
import pytest

from effllm.scaling.answer import AT_BOUND, NO_SPREAD, answers, rank_probabilities
from effllm.scaling.law import Points
from effllm.scaling.noise import noise_of
from tests.unit.scaling.test_fit import ALPHA, BETA, SIZES, TOKENS, A, B, E, fitted, grid, points

FIVE = (5e7, 1e8, 2e8, 4e8, 8e8)
TARGET: Any = {"parameters": 7e9, "tokens": 140e9, "draws": 200, "seed": 3}


def better(found: Points, factor: float) -> Points:
    """The same runs with every loss times `factor`."""
    return Points(found.parameters, found.tokens, found.losses * factor, found.runs)


def test_ranks_of_techniques_far_apart_are_sure() -> None:
    runs = grid(SIZES, TOKENS, noise=0.001)
    found = answers({"worse": better(runs, 1.3), "good": runs, "best": better(runs, 0.8)}, **TARGET)
    assert {name: answer.rank for name, answer in found.items()} == {"worse": 3, "good": 2, "best": 1}
    assert found["best"].ranks == (1.0, 0.0, 0.0) and found["best"].rivals == ("worse", "good", "best")
    answer = found["good"]
    true = E + A / 7e9**ALPHA + B / 140e9**BETA
    assert answer.place == (7e9, 140e9)
    assert answer.predicted.interval and answer.predicted.interval[0] < true < answer.predicted.interval[1]
    assert answer.tokens_per_parameter.interval and answer.left_out_error.value == pytest.approx(0, abs=0.02)


def test_tied_techniques_have_no_rank_and_even_probabilities_on_average() -> None:
    """Five sizes of one, nine runs of the other: neither is favoured for having more of them."""
    firsts, ranked = [], 0
    for seed in range(6):
        pair = {"few": points(FIVE, 5e9, 0.003, 2 * seed), "many": points(FIVE + FIVE[1:], 5e9, 0.003, 2 * seed + 1)}
        found = answers(pair, **TARGET | {"draws": 100})
        firsts.append(found["few"].ranks[0])
        ranked += any(answer.rank is not None for answer in found.values())
        assert sum(found["few"].ranks) == pytest.approx(1)
    assert np.mean(firsts) == pytest.approx(0.5, abs=0.2)
    assert ranked <= 1
    assert found["few"].why_no_rank == "its interval overlaps that of many"


def test_intervals_hold_the_exponent_about_as_often_as_they_say() -> None:
    held = []
    for seed in range(6):
        found = answers(
            {"a": points(FIVE, 5e9, 0.003, seed), "b": points(FIVE, 5e9, 0.003, 99 - seed)}, **TARGET | {"draws": 100}
        )
        for answer in found.values():
            assert answer.exponents[0].interval
            low, high = answer.exponents[0].interval
            held.append(low <= ALPHA <= high)
    assert np.mean(held) >= 0.8


def test_three_sizes_have_a_law_and_no_interval() -> None:
    runs = points(SIZES[:3], 5e9, noise=0.003)
    found = answers({"a": runs, "b": better(runs, 0.5)}, **TARGET)
    answer = found["a"]
    assert answer.exponents[0].value and answer.exponents[0].interval is None
    assert answer.rank is None and answer.ranks == () and answer.why_no_rank == NO_SPREAD
    assert answer.left_out_error.why == "without its largest size no such law is left to fit"
    # Seeds of one technique say how far the runs of all scatter.
    sizes = (*SIZES[:3], *SIZES[:3])
    found = answers({"a": points(sizes, 5e9, noise=0.003), "b": better(runs, 0.5)}, **TARGET)
    assert found["b"].exponents[0].interval and found["b"].rank == 1


def test_points_of_one_run_do_not_stand_for_runs() -> None:
    """Three runs of many points: they tell beta, and not how far runs scatter, without which there is no alpha."""
    runs = grid(SIZES[:3], (1e9, 2e9, 4e9, 8e9, 16e9), noise=0.001)
    runs = Points(runs.parameters, runs.tokens, runs.losses, np.repeat(np.arange(3), 5))
    design, law = fitted(runs)
    noise = noise_of(design, law)
    assert (noise.runs.freedom, noise.points.freedom) == (0, 15 - 3 - 2)
    answer = answers({"a": runs}, **TARGET)["a"]
    alpha, beta = answer.exponents
    assert alpha.interval is None and alpha.why == NO_SPREAD
    assert beta.interval and beta.interval[0] < BETA < beta.interval[1]
    assert answer.predicted.interval is None and answer.drawn is None


def test_what_is_predicted_elsewhere_or_alone_is_not_ranked() -> None:
    one, other = points(FIVE, 5e9, 0.003), points(FIVE, 1e9, 0.003)
    found = answers({"long": one, "short": other, "two": points(SIZES[:2], 5e9)}, **TARGET)
    assert found["long"].why_no_rank == "no other technique of the table is predicted at this place"
    assert found["two"].why == "a law needs 3 points, and there are 2" and found["two"].ranks == ()
    flat = Points(np.array(SIZES), np.full(4, 1e9), np.array([4.0, 2.0, 2.0, 2.0]), np.arange(4))
    answer = answers({"a": one, "flat": flat}, **TARGET)["flat"]
    assert answer.exponents[0].why == answer.why_no_rank == AT_BOUND and answer.predicted.value is None


def test_the_same_seed_gives_the_same_answer() -> None:
    runs = {"a": points(FIVE, 5e9, 0.003), "b": points(FIVE, 5e9, 0.003, seed=1)}
    one, again = answers(runs, **TARGET), answers(runs, **TARGET)
    assert one["a"].ranks == again["a"].ranks and one["b"].exponents == again["b"].exponents


def test_probabilities_of_ranks_by_hand() -> None:
    drawn = np.array([[1.0, 2.0, 1.0, 1.0], [2.0, 1.0, 1.0, 2.0], [3.0, 3.0, 3.0, 0.0]])
    assert rank_probabilities(drawn).tolist() == [[0.375, 0.375 + 0.25, 0.0], [0.375, 0.375, 0.25], [0.25, 0.0, 0.75]]
