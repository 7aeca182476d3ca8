"""Paired differences against scipy's paired tests, resampling and simulated truth."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from effllm.tables.paired import (
    BONETT_PRICE,
    RULE,
    STUDENT,
    bonett_price,
    mean_change,
    paired_difference,
    ratio_change,
)

outcomes = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        *(st.lists(st.integers(0, 1), min_size=n, max_size=n) for _ in range(2)),
        st.lists(st.integers(0, 9), min_size=n, max_size=n),
    )
)


def alone(count):
    return list(range(count))


def test_losses_of_items_that_share_no_cluster_have_the_paired_t_interval():
    rng = np.random.default_rng(0)
    base = rng.gamma(4, 1, 40)
    ours = base + rng.normal(0.05, 0.1, 40)
    change = paired_difference(ours.tolist(), base.tolist(), [1] * 40, alone(40))
    expected = scipy.stats.ttest_rel(ours, base).confidence_interval(0.95)
    assert change.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert change.method == STUDENT and change.value == pytest.approx((ours - base).mean())


def test_losses_per_token_of_documents_have_the_error_that_resampled_documents_show():
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 400, 80)
    base = tokens * rng.normal(3, 0.5, 80)
    ours = base + tokens * rng.normal(0.02, 0.05, 80)
    change = paired_difference(ours.tolist(), base.tolist(), tokens.tolist(), alone(80))
    data = (ours, base, tokens)
    statistic = lambda o, b, t, axis: (o.sum(axis) - b.sum(axis)) / t.sum(axis)  # noqa: E731
    resampled = scipy.stats.bootstrap(
        data, statistic, paired=True, n_resamples=4000, method="basic", rng=np.random.default_rng(2)
    )
    low, high = resampled.confidence_interval
    assert change.interval == pytest.approx((low, high), abs=0.1 * (high - low))
    assert change.value == pytest.approx((ours.sum() - base.sum()) / tokens.sum())
    unpaired = np.std(base / tokens) * math.sqrt(2 / 80)
    assert change.interval[1] - change.interval[0] < unpaired, "pairing takes out what documents have in common"


@pytest.mark.parametrize("gained", range(1, 9))
def test_right_and_wrong_answers_are_told_apart_where_the_exact_test_tells_them_apart(gained):
    """Only `gained` of 200 items differ, all one way: McNemar's exact test finds that at 6 of them, and not at 5."""
    ours, base = [1] * gained + [0] * (200 - gained), [0] * 200
    change = paired_difference(ours, base, [1] * 200, alone(200))
    exact = scipy.stats.binomtest(gained, gained).pvalue < 0.05
    assert (change.interval[0] > 0) == exact
    assert change.method == BONETT_PRICE and change.differing == gained


def test_the_interval_of_shares_is_that_of_the_sample_with_one_more_item_to_either_side():
    differences = [1] * 7 + [-1] + [0] * 13
    extended = np.array([*differences, 1, -1])
    expected = scipy.stats.norm.interval(0.95, extended.mean(), extended.std() / math.sqrt(len(extended)))
    assert bonett_price(differences, len(differences)) == pytest.approx(expected)


def test_the_interval_of_shares_holds_the_truth_in_nineteen_of_twenty_samples():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        kinds = rng.choice(4, size=150, p=[0.55, 0.06, 0.03, 0.36])
        ours, base = np.isin(kinds, (0, 1)).astype(int), np.isin(kinds, (0, 2)).astype(int)
        low, high = paired_difference(ours.tolist(), base.tolist(), [1] * 150, alone(150)).interval
        covered += low <= 0.03 <= high
    assert 0.935 < covered / 1000 < 0.985


def test_items_of_one_sentence_count_as_what_they_tell():
    ours, base, sentences = [1, 0, 0, 1] * 20, [0, 0, 1, 1] * 20, alone(80)
    apart = paired_difference(ours, base, [1] * 80, sentences)
    tripled = paired_difference(ours * 3, base * 3, [1] * 240, sentences * 3)
    assert tripled.interval == pytest.approx(apart.interval, rel=0.05), "copies of an item add nothing"
    assert (tripled.items, tripled.clusters) == (240, 80)


def test_where_no_item_differs_a_bound_stays():
    same = [0, 1] * 50
    change = paired_difference(same, same, [1] * 100, alone(100))
    assert (change.value, change.interval, change.bound, change.method) == (0, (-0.03, 0.03), 0.03, RULE)
    # With 3/n the chance of missing every difference is 5 %.
    missed = (1 - 0.03) ** 100
    assert missed == pytest.approx(0.05, abs=0.003)
    by_cluster = paired_difference(same, same, [1] * 100, [number // 10 for number in range(100)])
    assert by_cluster.bound == 0.3
    losses = paired_difference([0.5] * 9, [0.5] * 9, [3] * 9, alone(9))
    assert (losses.interval, losses.code, losses.bound) == (None, "none_differ", pytest.approx(1 / 3))


@given(outcomes)
def test_an_interval_holds_its_difference_and_is_never_a_point(case):
    ours, base, clusters = case
    change = paired_difference(ours, base, [1] * len(ours), clusters)
    if change.interval is None:
        assert change.code == "one_cluster"
    else:
        assert -1 <= change.interval[0] <= change.value + 1e-12 and change.value - 1e-12 <= change.interval[1] <= 1
        assert change.interval[0] < change.interval[1]
    assert (change.bound is None) == (ours != base)


@given(outcomes)
def test_the_other_way_round_it_is_the_same_with_the_sign_changed(case):
    ours, base, clusters = case
    one, other = (paired_difference(*sides, [1] * len(ours), clusters) for sides in ((ours, base), (base, ours)))
    assert one.value == pytest.approx(-other.value)
    if one.interval:
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))


def test_the_mean_of_benchmarks_knows_which_share_sentences():
    ours, base = [1, 0, 1, 1, 0, 1] * 10, [0, 0, 1, 0, 1, 1] * 10
    change = paired_difference(ours, base, [1] * 60, alone(60))
    by_sentence = {n: [a - b, 1] for n, (a, b) in enumerate(zip(ours, base, strict=True))}
    elsewhere = {("other", n): value for n, value in by_sentence.items()}
    same, apart = (mean_change([change, change], [by_sentence, other]) for other in (by_sentence, elsewhere))
    width = change.interval[1] - change.interval[0]
    assert same.interval[1] - same.interval[0] == pytest.approx(width)
    assert apart.interval[1] - apart.interval[0] == pytest.approx(width / math.sqrt(2))
    assert (same.clusters, apart.clusters) == (60, 120)


def test_a_mean_is_unknown_where_one_of_its_parts_is():
    known = paired_difference([1, 0], [0, 0], [1, 1], alone(2))
    absent = ratio_change(None, 1.0, None, None)
    assert mean_change([known, absent], [{}]).code == "not_measured"


def test_a_ratio_of_costs_has_the_interval_of_resampled_means():
    rng = np.random.default_rng(4)
    ours, base = rng.normal(8, 1, 30), rng.normal(10, 1, 40)

    def with_interval(sample):
        interval = scipy.stats.t.interval(0.95, len(sample) - 1, sample.mean(), scipy.stats.sem(sample))
        return sample.mean(), tuple(interval)

    (mine, own), (theirs, others) = with_interval(ours), with_interval(base)
    change = ratio_change(mine, theirs, own, others)
    resampled = scipy.stats.bootstrap(
        (ours, base), lambda a, b, axis: a.mean(axis) / b.mean(axis), n_resamples=4000, rng=np.random.default_rng(5)
    )
    low, high = resampled.confidence_interval
    assert change.value == pytest.approx(mine / theirs)
    assert change.interval == pytest.approx((low, high), abs=0.15 * (high - low))


@pytest.mark.parametrize(
    ("arguments", "value", "code"),
    [
        ((2.0, None, (1, 3), None), None, "not_measured"),
        ((2.0, 1.0, None, (0.5, 2)), 2.0, "no_interval"),
        ((0.0, 1.0, None, None), None, "not_positive"),
        ((2.0, 1.0, (-1, 3), (0.5, 2)), 2.0, "not_positive"),
    ],
)
def test_what_is_unknown_is_no_number(arguments, value, code):
    change = ratio_change(*arguments)
    assert (change.value, change.interval, change.code) == (value, None, code)


def test_a_difference_of_nothing_is_a_mistake():
    with pytest.raises(ValueError, match="at least one item"):
        paired_difference([], [], [], [])
