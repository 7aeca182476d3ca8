"""A printed table says which of its rows the measurement tells apart."""

import polars as pl

from effllm.tables.differences import differences
from effllm.tables.show import print_table


def _row(model, precision, middle, half, status="ok"):
    low, high = (None, None) if middle is None else (middle - half, middle + half)
    return {"model": model, "precision": precision, "latency_ms": middle, "latency_ms_low": low,
            "latency_ms_high": high, "status": status}  # fmt: skip


ROWS = [
    _row("A", "bfloat16", 100.0, 5.0),
    _row("A", "float16", 104.0, 5.0),
    _row("A", "int4", 80.0, 5.0),
    _row("B", "bfloat16", 393.0, 28.0),
    _row("B", "int4", 325.0, 9.0, status="invalid"),
    _row("C", "int4", None, None, status="oom"),
]


def test_rows_are_apart_where_their_intervals_are():
    assert differences(ROWS, "latency_ms", "model", "precision") == ["A: int4 < bfloat16 ~ float16"]
    assert differences(ROWS, "latency_ms", "precision", "model") == ["bfloat16: A < B"]
    assert differences(ROWS[:1], "latency_ms", "model", "precision") == []


def test_the_printed_table_says_so(tmp_path, capsys):
    path = tmp_path / "table9.csv"
    pl.DataFrame([row | {"not_measured": ""} for row in ROWS]).write_csv(path)
    print_table(path)
    assert "A: int4 < bfloat16 ~ float16; bfloat16: A < B" in " ".join(capsys.readouterr().out.split())
