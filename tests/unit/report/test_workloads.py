"""Charts by workload and size: which rows they hold, and what they say is best."""

from pathlib import Path

import pytest

from effllm.decision.rows import read_table
from effllm.report.blocks import ChartFigure, Figures, csv_text
from effllm.report.rows import view_of
from effllm.report.workloads import workload_blocks
from tests.unit.report.hand_made import row

OTHER = ("batch-8_status", "batch-8_IT_tokens_per_s", "batch-8_prefill_tokens_per_s", "batch-8_decode_tokens_per_s",
         "batch-8_energy_J_per_token", "batch-8_memory_peak_GB")  # fmt: skip


def _row(model: str, precision: str, billions: float, speed: float, status: str = "ok") -> dict:
    bits = 4 if precision == "int4" else 16
    own = {"weight_bytes": billions * 1e9 * bits / 8, "prefill_tokens_per_s": 40 * speed, "decode_tokens_per_s": speed}
    others = dict(zip(OTHER, (status, 7 * speed, 300 * speed, 8 * speed, "", 3 * billions), strict=True))
    return row(model, precision, 0.6, 100.0, 2 * billions) | own | others


def _charts(tmp_path: Path, rows: list[dict]) -> dict[str, ChartFigure]:
    path = tmp_path / "table9.csv"
    path.write_text(csv_text(list(rows[0]), [list(each.values()) for each in rows]))
    blocks = workload_blocks(view_of("table9", read_table(path)))
    return {chart.id: chart for block in blocks if isinstance(block, Figures) for chart in block.figures}


def test_each_workload_has_its_charts_over_the_sizes(tmp_path: Path) -> None:
    small, large = [("S", 1.5), ("L", 7.0)]
    charts = _charts(
        tmp_path,
        [
            _row(*small[:1], "bfloat16", small[1], 220.0),
            _row(*small[:1], "int4", small[1], 200.0),
            _row(*large[:1], "bfloat16", large[1], 110.0),
            _row(*large[:1], "int4", large[1], 140.0, status="invalid"),
        ],
    )
    assert len(charts) == 8
    own = charts["table9-workload-decode_tokens_per_s"]
    assert own.sentence == (
        "Most: at 1.5 billion parameters bfloat16, 220 tokens/s; at 7 billion parameters int4, 140 tokens/s."
    )
    assert own.scatter is not None and len(own.scatter.marks) == 4
    # The size is that of sixteen bits, whatever the precision.
    assert sorted({mark.mark.x.value for mark in own.scatter.marks}) == pytest.approx([1.5, 7.0])
    assert len({mark.mark.series for mark in own.scatter.marks}) == 2
    other = charts["table9-workload-batch-8_decode_tokens_per_s"]
    # A row that is invalid under this workload is drawn, and not called best.
    assert other.sentence.endswith("at 7 billion parameters bfloat16, 880 tokens/s.")
    assert other.scatter is not None and [mark.mark.is_valid for mark in other.scatter.marks].count(False) == 1
    assert charts["table9-workload-batch-8_energy_J_per_token"].missing.startswith("Not measured")


def test_one_size_or_one_workload_has_no_charts(tmp_path: Path) -> None:
    one = [_row("S", "bfloat16", 1.5, 220.0), _row("S", "int4", 1.5, 200.0)]
    assert _charts(tmp_path, one) == {}
    alone = [{key: value for key, value in each.items() if key not in OTHER} for each in one]
    alone += [alone[0] | {"model": "L", "weight_bytes": 14e9}]
    assert _charts(tmp_path, alone) == {}
