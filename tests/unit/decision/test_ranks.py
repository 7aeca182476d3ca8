"""Ranks against scipy's, normalised figures and scores against small tables worked out by hand."""

import csv
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from effllm.cli import main
from effllm.decision.ranks import COLUMNS, SCORE, SCORE_PRINTED, efficiency_scores, normalise, rank_rows, ranks
from effllm.decision.rows import Figure
from effllm.decision.sheet import Sheet, sheet_of_published
from tests.unit.decision.tables import line, write

PAPER = Path(__file__).parents[3] / "config" / "paper"
LATENCY = "AL_s_per_iter"


def sheet(
    figures: dict[tuple[str, str], dict[str, tuple[float, ...]]],
    better: dict[str, str],
    left_out: tuple[tuple[str, str], ...] = (),
    is_published: bool = True,
    cells: dict[tuple[str, str], dict[str, str | None]] | None = None,
) -> Sheet:
    """A made-up table 7; every column is a cost but `loss`."""
    return Sheet(
        "table7", ("model", "method"),
        {row: {column: Figure(*values) for column, values in columns.items()} for row, columns in figures.items()},
        dict.fromkeys(left_out, "invalid: disturbed"), cells or {}, ("device",), better,
        frozenset(better) - {"loss"}, {}, is_published,
    )  # fmt: skip


def of(found, column, group="M"):
    return {rank.row.split(" ", 1)[1]: rank for rank in found if (rank.column, rank.group) == (column, group)}


# In Table 5 each size is a group of one row.
@pytest.mark.parametrize("path", sorted(PAPER.glob("table[346789].csv")), ids=lambda path: path.stem)
def test_places_within_a_group_are_scipys_for_every_published_figure(path):
    table = sheet_of_published(path)
    compared = 0
    for group, rows in table.groups().items():
        for column, better in table.better.items():
            have = [row for row in rows if column in table.figures[row]]
            if len(have) < 2:
                continue
            sign = 1 if better == "lower" else -1
            expected = rankdata([sign * table.figures[row][column].value for row in have], method="min")
            found = {rank.row: rank for rank in ranks(table) if (rank.column, rank.group) == (column, group)}
            assert [found[" ".join(row)].rank for row in have] == list(expected)
            compared += len(have)
    assert compared > 10


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=2, max_size=7), st.randoms())
def test_a_rank_lies_in_its_interval_and_the_order_of_rows_does_not_matter(values, order: random.Random):
    figures = {
        ("M", f"m{n}"): {"x": (v + 0.0, v - reach * 0.5, v + reach * 0.5)} for n, (v, reach) in enumerate(values)
    }
    first = of(ranks(sheet(figures, {"x": "lower"})), "x")
    for method, rank in first.items():
        assert 1 <= rank.low <= rank.rank <= rank.high <= len(values)
        tied = [name.split(" ", 1)[1] for name in rank.tied]
        assert method not in tied and all(f"M {method}" in first[other].tied for other in tied)
        assert (rank.low == rank.high) == (not tied)
    shuffled = list(figures.items())
    order.shuffle(shuffled)
    again = of(ranks(sheet(dict(shuffled), {"x": "lower"})), "x")
    for method, rank in again.items():
        assert (rank.rank, rank.low, rank.high, set(rank.tied)) == (
            first[method].rank, first[method].low, first[method].high, set(first[method].tied),
        )  # fmt: skip


def test_overlapping_figures_share_ranks_and_are_named():
    figures = {
        ("M", "a"): {"x": (1.0, 0.9, 1.1)},
        ("M", "b"): {"x": (1.15, 1.05, 1.25)},
        ("M", "c"): {"x": (1.3, 1.2, 1.4)},
        ("M", "d"): {"x": (3.0, 2.9, 3.1)},
    }
    found = of(ranks(sheet(figures, {"x": "lower"})), "x")
    assert {name: (r.rank, r.low, r.high, r.tied) for name, r in found.items()} == {
        "a": (1, 1, 2, ("M b",)),
        "b": (2, 1, 3, ("M a", "M c")),
        "c": (3, 2, 3, ("M b",)),
        "d": (4, 4, 4, ()),
    }


def test_costs_of_one_run_each_are_tied_within_the_margin():
    figures = {("M", name): {"x": (value,)} for name, value in (("a", 100.0), ("b", 103.0), ("c", 120.0))}
    found = of(ranks(sheet(figures, {"x": "lower"}, is_published=False)), "x")
    assert {name: (r.low, r.high) for name, r in found.items()} == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}


@pytest.mark.parametrize(("better", "expected"), [("lower", [1.0, 0.64, 0.1]), ("higher", [0.1, 0.46, 1.0])])
def test_normalised_values_are_equations_10_and_11(better, expected):
    assert list(normalise({"a": 10.0, "b": 14.0, "c": 20.0}, better).values()) == pytest.approx(expected)


def test_equal_values_have_no_normalised_one():
    assert normalise({"a": 3.0, "b": 3.0}, "lower") == {"a": None, "b": None}
    found = of(ranks(sheet({("M", n): {"x": (3.0, 3.0, 3.0)} for n in "ab"}, {"x": "lower"})), "x")
    assert [(r.rank, r.low, r.high, r.printed, r.code) for r in found.values()] == [(1, 1, 2, None, "one_value")] * 2


def test_noise_is_not_stretched_to_a_scale():
    found = of(
        ranks(sheet({("M", "a"): {"x": (3.0, 2.0, 4.0)}, ("M", "b"): {"x": (3.1, 2.1, 4.1)}}, {"x": "lower"})), "x"
    )
    assert [(r.printed, r.normalised, r.code) for r in found.values()] == [
        (1.0, None, "not_told_apart"), (pytest.approx(0.1), None, "not_told_apart"),
    ]  # fmt: skip


def test_rows_that_do_not_count_have_no_rank_and_set_no_extreme():
    figures = {("M", "a"): {"x": (10.0, 10.0, 10.0)}, ("M", "b"): {"x": (20.0, 20.0, 20.0)}, ("M", "c"): {}}
    found = of(ranks(sheet(figures, {"x": "lower"}, left_out=(("M", "broken"),))), "x")
    assert [(name, r.rank, r.ranked, r.normalised, r.code) for name, r in found.items()] == [
        ("a", 1, 2, 1.0, None), ("b", 2, 2, pytest.approx(0.1), None),
        ("c", None, None, None, "not_measured"), ("broken", None, None, None, "not_ok"),
    ]  # fmt: skip


def test_an_invalid_row_of_a_file_is_listed_without_a_rank(tmp_path, capsys):
    lines = [
        line("M bfloat16", memory_peak_GB=10), line("M int4", memory_peak_GB=5),
        line("M float16", memory_peak_GB=1, status="invalid", reason="disturbed: 20 %"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["rank", str(write(tmp_path / "table9.csv", lines)), "--column", "memory_peak_GB", "--csv"])
    assert end.value.code == 0
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert tuple(found[0]) == COLUMNS
    assert [(row["row"], row["rank"], row["normalised"], row["reason_code"]) for row in found] == [
        ("M bfloat16", "2", "0.1", ""), ("M int4", "1", "1.0", ""), ("M float16", "", "", "not_ok"),
    ]  # fmt: skip


def test_rows_of_other_devices_are_not_ranked_together():
    figures = {
        ("M", name): {"x": (value, value, value)} for name, value in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)
    }
    cells = {("M", name): {"device": device} for name, device in zip("abcd", ("A", "A", "B", "B"), strict=True)}
    found = ranks(sheet(figures, {"x": "lower"}, cells=cells))
    assert {group: [r.rank for r in of(found, "x", group).values()] for group in ("M (device A)", "M (device B)")} == {
        "M (device A)": [1, 2],
        "M (device B)": [1, 2],
    }


def test_the_mean_over_groups_is_over_those_that_have_every_technique():
    values = {("A", "x"): 1.0, ("A", "y"): 4.0, ("B", "x"): 5.0, ("B", "y"): 3.0, ("C", "x"): 900.0}
    figures = {(model, method): {"loss": (value, value, value)} for (model, method), value in values.items()}
    found = [rank for rank in ranks(sheet(figures, {"loss": "lower"})) if rank.group == "mean over 2 groups"]
    assert [(rank.row, rank.figure.value, rank.rank, rank.printed) for rank in found] == [
        ("x", 3.0, 1, 1.0), ("y", 3.5, 2, pytest.approx(0.1)),
    ]  # fmt: skip


TERMS = {
    "lean": {"AMU_GB": 10.0, "PCU": 0.5, LATENCY: 2.0, "ST_samples_per_param_s": 4.0, "AEC_W": 100.0},
    "fast": {"AMU_GB": 20.0, "PCU": 1.0, LATENCY: 1.0, "ST_samples_per_param_s": 8.0, "AEC_W": 200.0},
}


def test_the_efficiency_score_is_equation_12_both_ways():
    names = {("M", method): terms for method, terms in TERMS.items()}
    # lean: 0.2 x (1 + 1 + 1/2 + 4/8 + 1); fast: 0.2 x (1/2 + 1/2 + 1 + 1 + 1/2).
    assert efficiency_scores(names, printed=False) == {
        ("M", "lean"): pytest.approx(0.8),
        ("M", "fast"): pytest.approx(0.7),
    }
    # With AL/min(AL) and max(ST)/ST: lean 0.2 x (1 + 1 + 2 + 2 + 1), and the slow one wins by far.
    assert efficiency_scores(names, printed=True) == {
        ("M", "lean"): pytest.approx(1.4),
        ("M", "fast"): pytest.approx(0.7),
    }


def test_a_score_carries_its_caveat_and_needs_every_term():
    figures = {("M", method): {name: (value,) for name, value in terms.items()} for method, terms in TERMS.items()}
    figures["M", "no power"] = {name: values for name, values in figures["M", "lean"].items() if name != "AEC_W"}
    better = {name: "higher" if name.startswith("ST") else "lower" for name in TERMS["lean"]}
    rows = rank_rows(sheet(figures, better, left_out=(("M", "broken"),), is_published=False), "ours")
    for name, places in ((SCORE, [1, 2, None, None]), (SCORE_PRINTED, [1, 2, None, None])):
        found = [row for row in rows if row["column"] == name]
        assert [row["rank"] for row in found] == places
        assert [row["reason_code"] for row in found] == ["caveat", "caveat", "not_measured", "not_ok"]
        assert "decides nothing" in found[0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config/paper/table3.csv", "--column", "PLP"], "did you mean 'PPL'?"),
        (["missing.csv"], "missing.csv does not exist"),
        (["config/paper/claims.yaml"], "none of this project's tables"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(["rank", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_text_shows_shared_places_and_why_others_have_none(tmp_path, capsys):
    lines = [
        line("M bfloat16", latency_ms=(100, 99, 101)), line("M float16", latency_ms=(101, 100, 102)),
        line("M int4", latency_ms=(50, 49, 51)), line("M int8", status="oom", reason="24 GB are not enough"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["rank", str(write(tmp_path / "table9.csv", lines)), "--column", "latency_ms"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "latency_ms, M: lower is better" in text
    assert [text_line.split()[:3] for text_line in text.splitlines()[1:5]] == [
        ["1", "M", "int4"], ["2-3", "M", "bfloat16"], ["2-3", "M", "float16"], ["-", "M", "int8"],
    ]  # fmt: skip
