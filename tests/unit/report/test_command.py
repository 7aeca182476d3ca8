"""`effllm report` on the command line."""

import csv
import io
import math
from pathlib import Path

import pytest

from effllm.cli import main
from tests.unit.report.hand_made import table9, write_results
from tests.unit.report.reading import elements


def _report(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    return ended.value.code


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results")


def _study(tmp_path: Path, repository: Path, budgets: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(f"extends: {repository / 'config' / 'tiny.yaml'}\nbudgets:\n  {budgets}\n")
    return path


def test_the_page_lies_in_the_directory_and_is_named(results: Path, capsys: pytest.CaptureFixture) -> None:
    assert _report(results) == 0
    page = results / "report.html"
    assert capsys.readouterr().out == f"{page}: {page.stat().st_size / 1000:,.0f} kB, one file to open or to forward.\n"


def test_the_same_inputs_give_the_same_bytes_elsewhere_too(results: Path, tmp_path: Path) -> None:
    assert _report(results) == _report(results, "--output", tmp_path / "other.html") == 0
    assert (tmp_path / "other.html").read_bytes() == (results / "report.html").read_bytes()


def test_a_studys_budgets_decide(results: Path, tmp_path: Path, repository: Path) -> None:
    study = _study(tmp_path, repository, "table9: {max: {latency_ms: 200}}")
    assert _report(results, "--study", study) == 0
    page = (results / "report.html").read_text()
    assert "latency at most 200 ms" in page
    assert "Not Llama-1M bfloat16: latency" in page


def test_a_misspelt_budget_is_answered_with_the_nearest(
    results: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    study = _study(tmp_path, repository, "table9: {max: {latency_mss: 200}}")
    assert _report(results, "--study", study) == 2
    assert "did you mean 'latency_ms'?" in capsys.readouterr().err


def test_no_place_to_write_is_a_sentence(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert _report(results, "--output", tmp_path / "none" / "page.html") == 2
    assert "is no directory" in capsys.readouterr().err


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The same again: one row is faster, one scores less on another device, one is of another model."""
    rows = table9()
    rows[0] |= {"latency_ms": 200, "latency_ms_low": 190, "latency_ms_high": 210}
    rows[2] |= {"average_performance": 0.5, "average_performance_low": 0.48, "average_performance_high": 0.52}
    rows[2] |= {"device": "another CPU", "AMU_scope": "device"}
    rows[5] |= {"model": "Qwen2-1M", "precision": "int8"}
    return write_results(tmp_path / "later", rows)


def _compared(first: Path, second: Path) -> tuple[str, dict[str, dict[str, str]]]:
    """The page of two directories as text, and its CSV of rows by name."""
    assert _report(first, second) == 0
    read = elements(second / "report.html")
    (table,) = [element for element in read if element.get("id") == "table9-rows-csv"]
    lines = csv.DictReader(io.StringIO("".join(table.texts).lstrip()))
    return next(element for element in read if element.tag == "body").text, {line["row"]: line for line in lines}


def _change(line: dict[str, str], column: str) -> list[float]:
    return [float(line[f"{column}_{part}"]) for part in ("change", "change_low", "change_high")]


def test_two_runs_are_compared_row_by_row(results: Path, later: Path) -> None:
    text, rows = _compared(results, later)
    assert "Only in results: Qwen2-1M int4." in text and "Only in later: Qwen2-1M int8." in text
    assert "device (a CPU in the first, another CPU in the second)" in text
    assert "Latency: 1 surely better, 3 not told apart." in text
    assert "Average performance: 1 surely worse, 3 not told apart." in text
    # Distances to the ends add up as squares: of a ratio those of the logarithms.
    ratio = 200 / 283
    below = math.sqrt(math.log(200 / 190) ** 2 + math.log(305.64 / 283) ** 2)
    above = math.sqrt(math.log(210 / 200) ** 2 + math.log(283 / 260.36) ** 2)
    expected = [ratio, ratio * math.exp(-below), ratio * math.exp(above)]
    assert _change(rows["Llama-1M bfloat16"], "latency_ms") == pytest.approx(expected, rel=1e-4)
    expected = [-13.38, -13.38 - 100 * math.hypot(0.02, 0.023), -13.38 + 100 * math.hypot(0.02, 0.024)]
    assert _change(rows["Llama-1M int4"], "average_performance") == pytest.approx(expected, rel=1e-4)


def test_what_does_not_count_or_compare_has_no_change(results: Path, later: Path) -> None:
    text, rows = _compared(results, later)
    assert rows["Qwen2-1M float16"]["latency_ms_change"] == "" and "invalid in the first: disturbed" in text
    assert rows["Llama-1M int4"]["memory_peak_GB_change"] == "" and "not compared: AMU scope" in text
    assert rows["Llama-1M int4"]["energy_J_per_token_change"] == ""


def test_a_run_against_itself_has_changed_nothing(results: Path) -> None:
    text, _ = _compared(results, results)
    assert "Conditions are the same." in text and "surely" not in text and "Only in" not in text


@pytest.mark.parametrize(
    ("count", "options", "sentence"),
    [(3, (), "3 directories were given"), (2, ("--study", "config/tiny.yaml"), "under no budget")],
    ids=["three", "budgets"],
)
def test_what_cannot_be_compared_is_told(
    results: Path, count: int, options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture
) -> None:
    assert _report(*[results] * count, *options) == 2
    assert sentence in capsys.readouterr().err
