"""Charts in pixels: each row is drawn where its figures are, budgets shade the side that they exclude."""

import pytest

from effllm.decision.rows import Figure
from effllm.report.figures import figure_text, interval_text, listed, percent_text
from effllm.report.forest import Line, forest
from effllm.report.scatter import Axis, Mark, scatter

MEMORY, QUALITY = Axis("Memory", "GB"), Axis("Performance", "points", less_is_better=False)
MARKS = [
    Mark("a", "a", "", Figure(10.0, 9.0, 11.0), Figure(60.0, 58.0, 62.0)),
    Mark("b", "b", "", Figure(20.0), Figure(70.0)),
]


def test_marks_are_in_the_order_of_their_figures_and_intervals_around_them() -> None:
    chart = scatter(MARKS, MEMORY, QUALITY)
    a, b = chart.marks
    assert a.x < b.x and a.y > b.y
    assert a.x_interval[0] < a.x < a.x_interval[1]
    assert a.y_interval[0] > a.y > a.y_interval[1]
    assert b.x_interval is None and b.y_interval is None
    assert (chart.x_title, chart.y_title) == ("Memory, GB", "Performance, points")


@pytest.mark.parametrize("less", [True, False])
def test_a_budget_shades_what_it_excludes(less: bool) -> None:
    chart = scatter(MARKS, Axis("Memory", "GB", less_is_better=less, limit=15.0), QUALITY)
    ((x, y, width, height),) = chart.excluded
    ((line, *_),) = chart.limits
    a, b = chart.marks
    assert a.x < line < b.x
    excluded = b if less else a
    assert x <= excluded.x <= x + width and y <= excluded.y <= y + height
    assert not x < (a if less else b).x < x + width


def test_a_quality_budget_shades_what_is_below_it() -> None:
    chart = scatter(MARKS, MEMORY, Axis("Performance", "points", less_is_better=False, limit=65.0))
    ((_, y, _, height),) = chart.excluded
    a, b = chart.marks
    assert y <= a.y <= y + height and not y <= b.y <= y + height


def test_a_budget_far_from_every_row_is_told_in_words() -> None:
    chart = scatter(MARKS, Axis("Memory", "GB", limit=1000.0), QUALITY)
    assert not chart.limits and not chart.excluded
    assert chart.off_axis == ["The limit of 1,000 GB on memory lies beyond every row and is not drawn."]


def test_the_quadrant_of_gains_is_the_one_that_is_better_in_both() -> None:
    x, y = Axis("Memory", "GB", "ratio"), Axis("Performance", "points", "difference", less_is_better=False)
    better = Mark("a", "a", "", Figure(0.8), Figure(1.0))
    worse = Mark("b", "b", "", Figure(1.3), Figure(-1.0))
    mixed = Mark("c", "c", "", Figure(0.9), Figure(-0.5))
    chart = scatter([better, worse, mixed], x, y)
    left, top, width, height = chart.gain
    inside = [left <= item.x <= left + width and top <= item.y <= top + height for item in chart.marks]
    assert inside == [True, False, False]
    assert "+20" in [tick.text for tick in chart.x_ticks]
    assert chart.x_title == "Memory, change in %"


def test_more_than_ten_times_is_a_logarithmic_axis_and_says_so() -> None:
    marks = [Mark(str(n), "", "", Figure(float(10**n)), Figure(1.0 + n)) for n in range(3)]
    chart = scatter(marks, MEMORY, QUALITY)
    assert chart.is_log and chart.x_title == "Memory, GB, log"
    gaps = [second.home - first.home for first, second in zip(chart.marks, chart.marks[1:], strict=False)]
    assert gaps[0] == pytest.approx(gaps[1])


def test_all_charts_are_equally_high() -> None:
    other = scatter([Mark("a", "a", "", Figure(1e-9), Figure(1e9))], MEMORY, QUALITY)
    assert (other.width, other.height) == (
        scatter(MARKS, MEMORY, QUALITY).width,
        scatter(MARKS, MEMORY, QUALITY).height,
    )


def test_a_forest_keeps_lines_that_were_not_measured() -> None:
    lines = [Line("a", "a", Figure(-0.5, -1.0, 0.0)), Line("b", "b", None, note="no sensor")]
    chart = forest(lines, Axis("Performance", "points", "difference", less_is_better=False))
    measured, absent = chart.lines
    assert measured.ends[0] < measured.at < measured.ends[1] <= chart.origin
    assert (measured.text, measured.interval) == ("\N{MINUS SIGN}0.5", "[\N{MINUS SIGN}1, 0]")
    assert absent.at is None and absent.line.note == "no sensor"
    assert chart.gain == (chart.origin, 100 - chart.origin)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (0.0, "0"), (1234.5678, "1,235"), (0.00012345, "0.0001234"), (-0.5, "\N{MINUS SIGN}0.5"),
     (1.2e-8, "1.2e-8"), (123456789.0, "1.235e8"), (100.0, "100"), (9.9999, "10")],
)  # fmt: skip
def test_figures_have_four_digits(value: float | None, text: str) -> None:
    assert figure_text(value) == text


def test_words_around_figures() -> None:
    assert percent_text(1.353) == "+35.3 %"
    assert interval_text(None, 1.0) == ""
    assert interval_text(-1.0, 2.0, signed=True) == "[\N{MINUS SIGN}1, +2]"
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")
    assert listed(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"
