"""What every row of a table of pretraining must hold, whoever built it."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest


def assert_trained_and_measured(frame: pl.DataFrame, rows: Sequence[dict[str, Any]], steps: int) -> None:
    """The table has the study's rows, none failed, and each has figures of a training of so many steps on a CPU."""
    assert frame.select("method", "parameters").rows() == [(row["method"], row["parameters"]) for row in rows]
    for row in frame.iter_rows(named=True):
        # Others on the machine may disturb a measurement; a cell that failed would be a fault of ours.
        assert row["status"] == "ok" or row["reason"].startswith("disturbed"), row
        assert row["PPL_low"] < row["PPL"] < row["PPL_high"] < 2048
        assert row["training_hours"] == pytest.approx(row["AL_s_per_iter"] * steps / 3600, rel=1e-4)
        assert row["GPU_hours"] is None or row["GPU_hours"] == pytest.approx(row["training_hours"], rel=1e-4)
        assert row["GPU_hours"] is not None or "GPU_hours: trained on a CPU" in row["not_measured"]
        assert row["TT_tokens_per_param_s"] == pytest.approx(row["tokens_per_s"] / row["parameters_total"], rel=1e-4)
        assert row["AMU_GB"] > 0.1
        assert row["AEC_W"] is None or row["AEC_W"] > 0
        assert row["AEC_W"] is not None or "AEC_W" in row["not_measured"]
