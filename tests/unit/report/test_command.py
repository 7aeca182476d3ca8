"""`effllm report` on the command line."""

from pathlib import Path

import pytest

from effllm.cli import main
from tests.unit.report.hand_made import write_results


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
