"""Crossovers of made-up ratios against the lines that they lie on, and of the committed results."""

import csv
import itertools
import math
from pathlib import Path

import numpy
import pytest

from effllm.cli import main
from effllm.decision.crossover import COLUMNS, Point, cross, crossover_rows
from effllm.decision.effects import MARGIN, NOT_PAIRED
from effllm.decision.rows import read_table
from effllm.decision.sheet import sheet_of_table
from tests.conftest import REPOSITORY
from tests.unit.decision.tables import line, write

H100 = REPOSITORY / "docs" / "results" / "h100" / "table9.csv"


def exact(*ratios: float) -> list[Point]:
    """Points at 1, 2, 4, ... billion parameters that are known for sure."""
    return [Point(2.0**number, ratio, ratio, ratio) for number, ratio in enumerate(ratios)]


def rows_of(path: Path, lines, **options):
    sheet = sheet_of_table(read_table(write(path, lines)))
    rows = crossover_rows(sheet, NOT_PAIRED, "bfloat16", **options)
    return {(row["method"], row["resource"]): row for row in rows}


def test_a_crossing_lies_on_the_line_through_the_logarithms():
    found = cross([Point(1.0, 2.0, 1.6, 2.5), Point(4.0, 0.5, 0.4, 0.8)])
    assert (found.saves, found.size) == ("from this size on", pytest.approx(2.0))
    for end, ratios in ((found.low, (1.6, 0.4)), (found.high, (2.5, 0.8))):
        log_size = numpy.interp(0.0, numpy.log(ratios)[::-1], numpy.log([4.0, 1.0]))
        assert end == pytest.approx(math.exp(log_size))
    # A third size beyond changes nothing, and the first of two equal costs does not save.
    assert cross([*exact(2.0, 1.0, 0.5)]).size == pytest.approx(2.0)
    assert cross([*exact(2.0, 2.0, 0.5, 0.25)]).size == pytest.approx(2 * math.sqrt(2))


@pytest.mark.parametrize(
    ("ratios", "saves", "code"),
    [
        ((0.9, 0.5), "at every measured size", "outside"),
        ((2.0, 1.0), "at no measured size", "outside"),
        ((2.0, 0.5, 2.0, 0.5), "at some measured sizes", "several"),
        ((0.5,), None, "too_few_sizes"),
    ],
)
def test_where_no_one_crossing_was_measured_no_size_is_said(ratios, saves, code):
    found = cross(exact(*ratios))
    assert (found.saves, found.code, found.size, found.low, found.high) == (saves, code, None, None, None)


def test_savings_that_end_and_ends_beyond_the_sizes_are_told():
    ends = cross([Point(1.0, 0.5, 0.4, 0.6), Point(4.0, 2.0, 1.5, 2.5)])
    assert (ends.saves, ends.size, ends.code) == ("up to this size", pytest.approx(2.0), None)
    assert ends.low < 2.0 < ends.high
    wide = cross([Point(1.0, 2.0, 0.9, 2.5), Point(4.0, 0.5, 0.4, 0.6)])
    assert (wide.low, wide.code) == (None, "open")
    assert wide.high is not None


def test_an_end_that_saves_at_the_smallest_size_is_open_whatever_it_does_between():
    falls = [Point(1.0, 1.2, 0.95, 1.3), Point(2.0, 1.3, 1.1, 1.4), Point(4.0, 0.5, 0.4, 0.6)]
    found = cross(falls)
    assert (found.saves, found.low, found.code) == ("from this size on", None, "open")
    assert found.high is not None and found.size is not None and found.size < found.high
    rises = [Point(1.0, 0.5, 0.4, 0.6), Point(2.0, 1.3, 1.1, 1.4), Point(4.0, 1.2, 0.95, 1.3)]
    found = cross(rises)
    assert (found.saves, found.high, found.code) == ("up to this size", None, "open")
    assert found.low is not None and found.size is not None and found.low < found.size


def test_models_of_one_size_count_as_one_in_any_order():
    points = [
        Point(1.0, 2.0, 1.9, 2.1),
        Point(4.0, 0.5, 0.4, 0.6),
        Point(4.0, 2.0, 1.9, 2.1),
        Point(16.0, 0.5, 0.4, 0.6),
    ]
    found = {cross(order) for order in itertools.permutations(points)}
    # Their mean is 1: from there to the largest size on.
    assert [(one.saves, one.size, one.low, one.high) for one in found] == [
        ("from this size on", pytest.approx(4.0), pytest.approx(_log_size((1.0, 4.0), (1.9, 0.4))), pytest.approx(
            _log_size((4.0, 16.0), (2.1, 0.6))
        ))
    ]  # fmt: skip
    assert cross([Point(4.0, 2.0, 2.0, 2.0), Point(4.0, 0.5, 0.5, 0.5)]).code == "too_few_sizes"


def _log_size(sizes, ratios):
    """Where a line through the logarithms is 0."""
    order = numpy.argsort(ratios)
    return math.exp(numpy.interp(0.0, numpy.log(ratios)[order], numpy.log(sizes)[order]))


def test_a_table_that_tells_no_sizes_says_so(tmp_path):
    lines = [
        line(f"{model} {precision}", latency_ms=1.0) for model in ("one", "two") for precision in ("bfloat16", "p")
    ]
    row = rows_of(tmp_path / "table9.csv", lines)["p", "time"]
    assert (row["reason_code"], row["saves"]) == ("no_size", None)
    assert "weight_bytes" in row["reason"]


def test_rows_that_do_not_count_are_no_sizes_and_intervals_hold_the_margin(tmp_path):
    lines = []
    for size, ratio in (("1B", 2.0), ("4B", 0.5), ("16B", 0.25)):
        lines.append(
            line(f"{size} bfloat16", latency_ms=(10.0, 9.0, 11.0), memory_peak_GB=10.0, energy_J_per_token=1.0)
        )
        lines.append(line(f"{size} int4", latency_ms=(10 * ratio, 9 * ratio, 11 * ratio), memory_peak_GB=10.0 * ratio))
    lines[-1] |= {"status": "invalid", "reason": "disturbed"}
    found = rows_of(tmp_path / "table9.csv", lines, main="single", batch_sizes={"single": 8})
    time, memory, energy = (found["int4", resource] for resource in ("time", "memory", "energy"))
    assert (time["workload"], time["batch_size"], time["measured_b"], time["ratios"]) == ("single", 8, "1; 4", "2; 0.5")
    assert (memory["parameters_b"], memory["saves"]) == (pytest.approx(2.0), "from this size on")
    # No interval of its own: the margin alone.
    low, high = (2 * 4 ** (math.log(factor) / math.log(4)) for factor in (1 - MARGIN, 1 + MARGIN))
    assert (memory["parameters_b_low"], memory["parameters_b_high"]) == (pytest.approx(low), pytest.approx(high))
    assert time["parameters_b_low"] < low < high < time["parameters_b_high"]
    assert (energy["saves"], energy["reason_code"]) == (None, "too_few_sizes")
    lines[1]["device"] = "another GPU"
    assert rows_of(tmp_path / "table9.csv", lines)["int4", "memory"]["reason_code"] == "too_few_sizes"


def test_the_command_reads_the_committed_table(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["crossover", str(H100), "--csv"])
    assert ended.value.code == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert tuple(rows[0]) == COLUMNS
    time = next(row for row in rows if (row["method"], row["column"]) == ("int4", "latency_ms"))
    assert time["measured_b"] == "1.544; 7.616", "by the bytes of the 16-bit weights"
    # One workload is invalid for the larger model.
    generate = [row for row in rows if row["workload"] == "generate"]
    assert {row["reason_code"] for row in generate} == {"too_few_sizes"}
    with pytest.raises(SystemExit) as ended:
        main(["crossover", str(H100)])
    assert "int4 against bfloat16, time: saves from 3.03 [2.29, 3.97] billion parameters on" in capsys.readouterr().out
    for arguments, word in (
        ([str(H100), "--baseline", "int8"], "int4"),
        ([str(H100.with_name("table7.csv"))], "table 9"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["crossover", *arguments])
        assert ended.value.code == 2
        assert word in capsys.readouterr().err
