"""Losses of quality against what they must be, worked out by hand or drawn at random."""

import csv
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from effllm.decision.loss import Pair, loss, read_pairs
from effllm.decision.rows import Figure, Row, Table, read_table
from effllm.tables.description import Column
from tests.unit.decision.tables import line, write

SCORE = Column("score", "quality", better="higher", points=True)
PERPLEXITY = Column("PPL", "quality", better="lower")
TABLE = Table(Path("table3.csv"), None, {}, ())  # type: ignore[arg-type]


def row(name: str, column: Column, figure: Figure | None) -> Row:
    return Row(1, (name,), "ok", "", {column.name: figure} if figure else {}, {}, {})


def test_independent_errors_add_in_squares() -> None:
    one, best = row("a", SCORE, Figure(0.5, 0.47, 0.53)), row("b", SCORE, Figure(0.6, 0.56, 0.64))
    found = loss(one, best, SCORE, "higher", {}, TABLE)
    assert found is not None and not found.paired
    assert (found.value, found.low, found.high) == pytest.approx((10, 5, 15))
    assert loss(one, row("b", SCORE, None), SCORE, "higher", {}, TABLE) is None


def test_each_side_of_a_skewed_interval_counts_on_its_side() -> None:
    one, best = row("a", SCORE, Figure(0.0, 0.0, 0.04)), row("b", SCORE, Figure(0.1, 0.07, 0.2))
    found = loss(one, best, SCORE, "higher", {}, TABLE)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((10 - 5, 10 + 10))


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    draws, held = random.Random(0), 0
    for _ in range(2000):
        scores = [statistics.mean(draws.choices((0, 1), (1 - p, p), k=400)) for p in (0.55, 0.6)]
        halves = [1.96 * math.sqrt(s * (1 - s) / 400) for s in scores]
        one, best = (row(name, SCORE, Figure(s, s - h, s + h)) for name, s, h in zip("ab", scores, halves, strict=True))
        found = loss(one, best, SCORE, "higher", {}, TABLE)
        assert found is not None
        held += found.low <= 5 <= found.high
    assert 0.93 < held / 2000 < 0.97


def test_of_what_is_better_when_lower_more_is_a_loss_in_per_cent_of_the_best() -> None:
    found = loss(row("a", PERPLEXITY, Figure(11.0)), row("b", PERPLEXITY, Figure(10.0)), PERPLEXITY, "lower", {}, TABLE)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((10, 10, 10))


@pytest.mark.parametrize(
    ("column", "better", "pair", "forth", "back"),
    [
        (SCORE, "higher", Pair("difference", -0.02, -0.03, -0.01), (2, 1, 3), (-2, -3, -1)),
        (PERPLEXITY, "lower", Pair("ratio", 1.25, 1.0, 1.6), (25, 0, 60), (-20, -37.5, 0)),
        (PERPLEXITY, "lower", Pair("difference", 1.0, 0.5, 1.5), (10, 5, 15), (-10, -15, -5)),
    ],
)
def test_a_pair_counts_both_ways(
    column: Column, better: str, pair: Pair, forth: tuple[float, ...], back: tuple[float, ...]
) -> None:
    one, base = row("a", column, Figure(10.0)), row("base", column, Figure(10.0))
    pairs = {("a", "base", column.name): pair}
    for first, second, expected in ((one, base, forth), (base, one, back)):
        found = loss(first, second, column, better, pairs, TABLE)  # type: ignore[arg-type]
        assert found is not None and found.paired
        assert (found.value, found.low, found.high) == pytest.approx(expected)


def test_pairs_of_other_tables_and_names_are_left_out(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "table9.csv", [line("M bfloat16", MCR=1), line("M int4", MCR=4)]))
    assert read_pairs(table) == {}
    header = [
        "table",
        "row",
        "baseline",
        "column",
        "measure",
        "value",
        "baseline_value",
        "change",
        "low",
        "high",
        "bound",
    ]
    cells = ["M bfloat16", "MCR", "ratio", "4", "1", "4", "3", "5", ""]
    with open(tmp_path / "table9-pairs.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([header, ["table9", "M int4", *cells], ["table9", "gone", *cells]])
    found = read_pairs(table)
    assert found["M int4", "M bfloat16", "MCR"] == Pair("ratio", 4, 3, 5)
    assert read_pairs(replace(table, path=tmp_path / "table16.csv")) == {}
