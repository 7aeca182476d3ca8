"""Charts by load: a line for each model and precision, and what is said of the largest rate."""

from pathlib import Path
from typing import Any

from effllm.decision.rows import read_table
from effllm.report.blocks import Block, ChartFigure, Figures, Text, csv_text
from effllm.report.loads import load_blocks
from effllm.report.rows import view_of

NO_SENSOR = "no instrument measures energy"
_OUTSIDE = "not within the measured rates: up to the highest, 8 requests/s, 90 % of the requests meet it"


def _row(model: str, load: str, precision: str, rate: float | str, ttft: float, **changes: Any) -> dict[str, Any]:
    return {
        "served": f"{model} at {load}", "precision": precision, "average_performance": 0.6, "max_rate_per_s": 5.5,
        "max_rate_per_s_low": 5.0, "max_rate_per_s_high": 6.0, "ttft_ms_p50": ttft, "ttft_ms_p50_low": 0.9 * ttft,
        "ttft_ms_p50_high": 1.2 * ttft, "energy_J_per_output_token": "", "model": model, "load": load,
        "offered_requests_per_s": rate, "slo": "ttft 200 ms for 90 %", "status": "ok", "reason": "",
        "not_measured": f"energy_J_per_output_token: {NO_SENSOR}",
    } | changes  # fmt: skip


def _blocks(tmp_path: Path, rows: list[dict[str, Any]]) -> list[Block]:
    path = tmp_path / "serving.csv"
    path.write_text(csv_text(list(rows[0]), [list(each.values()) for each in rows]))
    return load_blocks(view_of("serving", read_table(path)))


def _rows() -> list[dict[str, Any]]:
    absent = {"max_rate_per_s": "", "not_measured": f"max_rate_per_s: {_OUTSIDE}"}
    return [
        _row("S", "saturation", "bfloat16", "", 900),
        _row("S", "25 %", "bfloat16", 2, 50),
        _row("S", "25 %", "int4", 2.5, 40, **absent),
        _row("S", "90 %", "bfloat16", 7.5, 400),
        _row("S", "90 %", "int4", 8, 300, status="invalid", reason="3 requests failed", **absent),
        _row("L", "25 %", "bfloat16", 1, 80),
    ]


def test_rates_of_a_model_in_a_precision_are_joined(tmp_path: Path) -> None:
    blocks = _blocks(tmp_path, _rows())
    charts: dict[str, ChartFigure] = {
        chart.id: chart for block in blocks if isinstance(block, Figures) for chart in block.figures
    }
    chart = charts["serving-load-ttft_ms_p50"]
    assert chart.scatter is not None
    # What was not sent at a rate is in no such chart.
    assert sorted(placed.mark.x.value for placed in chart.scatter.marks) == [1, 2, 2.5, 7.5, 8]
    assert [placed.mark.is_valid for placed in chart.scatter.marks] == [True, True, True, False, True]
    # Shapes are models, colours precisions; a model with one rate has no line.
    assert [placed.mark.shape for placed in chart.scatter.marks] == [0, 0, 0, 0, 1]
    assert [(line.row, line.series, line.path.count("L")) for line in chart.scatter.joined] == [
        ("serving-2", 0, 1),
        ("serving-3", 1, 1),
    ]
    homes = {placed.mark.row: (placed.home, placed.y) for placed in chart.scatter.marks}
    ends = " ".join(f"{value:.1f}" for row in ("serving-2", "serving-4") for value in homes[row])
    assert chart.scatter.joined[0].path.replace("M", "").replace("L", " ") == ends
    assert chart.sentence == "Time to the first token (median) in ms: bfloat16 50 to 400; int4 40 to 40."
    assert charts["serving-load-energy_J_per_output_token"].missing == f"Not measured: {NO_SENSOR}."


def test_the_largest_rate_of_each_is_told_once(tmp_path: Path) -> None:
    texts = [block.text for block in _blocks(tmp_path, _rows()) if isinstance(block, Text)]
    assert texts[1] == (
        "Largest rate that meets the SLO (ttft 200 ms for 90 %): S bfloat16 5.5 [5, 6] requests/s; "
        f"S int4 not measured: {_OUTSIDE}; L bfloat16 5.5 [5, 6] requests/s."
    )


def test_a_table_without_rates_has_no_charts(tmp_path: Path) -> None:
    assert _blocks(tmp_path, [_row("S", "closed loop", "bfloat16", "", 50)]) == []
