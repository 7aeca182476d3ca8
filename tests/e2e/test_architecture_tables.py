"""Tables 3 to 6 and the curriculum of the embedded study, one size of each row, from nothing to their cells."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from effllm.runtime.artifact import Artifact
from effllm.study import parse_study
from tests.workflow.conftest import Workdir

pytestmark = pytest.mark.slow

TABLES = ("table3", "table4", "table5", "table6", "curriculum")
TARGETS = [f"results/{table}.csv" for table in TABLES] + ["results/validity.csv"]
PAPER_COLUMNS = {
    "table3": ["method", "parameters", "micro_batch", "context", "PPL", "AMU_GB", "AL_s_per_iter"],
    "table5": ["method", "parameters", "top_k", "micro_batch", "context", "PPL", "AMU_GB", "AL_s_per_iter"],
}
STEPS = 20


@pytest.fixture(scope="module")
def study(tiny_text: dict[str, Any]) -> dict[str, Any]:
    """The tiny study's tables of pretraining, their smallest size, trained for a sixth of the steps."""
    tables = {}
    for name in TABLES:
        rows = tiny_text["tables"][name]["rows"]
        smallest = min(row["parameters"] for row in rows if "x" not in row["parameters"])
        tables[name] = {"rows": [row for row in rows if row["parameters"].partition("x")[0] <= smallest]}
    runs = {run for table in tables.values() for row in table["rows"] for run in row["runs"]}
    pretraining = {
        id: {**tiny_text["pretraining"][id], "max_steps": STEPS, "checkpoint_every_steps": STEPS} for id in runs
    }
    empty = {"models": {}, "finetuning": {}, "benchmarks": {}, "precisions": {}}
    return {**tiny_text, **empty, "pretraining": pretraining, "tables": tables}


@pytest.fixture(scope="module")
def workdir(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A directory in which the workflow has built these tables from nothing."""
    workdir = Workdir(tmp_path_factory.mktemp("architectures"), study)
    workdir.snakemake(*TARGETS)
    return workdir


@pytest.fixture(scope="module")
def directory(workdir: Workdir) -> Path:
    """The same directory, by its path."""
    return workdir.path


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_there_trained_and_measured(directory: Path, study: dict[str, Any], table: str) -> None:
    frame = pl.read_csv(directory / "results" / f"{table}.csv")
    rows = study["tables"][table]["rows"]
    assert frame.select("method", "parameters").rows() == [(row["method"], row["parameters"]) for row in rows]
    assert frame.columns[: len(PAPER_COLUMNS.get(table, []))] == PAPER_COLUMNS.get(table, [])
    for row in frame.iter_rows(named=True):
        # Others on the machine may disturb a measurement; a cell that failed would be a fault of ours.
        assert row["status"] == "ok" or row["reason"].startswith("disturbed"), row
        assert row["PPL_low"] < row["PPL"] < row["PPL_high"] < 2048
        assert row["training_hours"] == pytest.approx(row["AL_s_per_iter"] * STEPS / 3600, rel=1e-4)
        assert row["GPU_hours"] is None or row["GPU_hours"] == pytest.approx(row["training_hours"], rel=1e-4)
        assert row["GPU_hours"] is not None or "GPU_hours: trained on a CPU" in row["not_measured"]
        assert row["TT_tokens_per_param_s"] == pytest.approx(row["tokens_per_s"] / row["parameters_total"], rel=1e-4)
        assert row["AMU_GB"] > 0.1
        assert row["AEC_W"] is None or row["AEC_W"] > 0
        assert row["AEC_W"] is not None or "AEC_W" in row["not_measured"]


def test_a_run_that_stands_in_two_tables_is_trained_once(directory: Path, study: dict[str, Any]) -> None:
    parsed = parse_study(study, "study")
    listed = [run for name in TABLES for row in getattr(parsed.tables, name).rows for run in row.runs]
    assert len(listed) > len(set(listed))
    built = {path.parent.name for path in (directory / "results" / "pretrain").glob("*/manifest.json")}
    assert built == set(listed)


def test_the_plausibility_rules_read_every_run(directory: Path) -> None:
    errors = pl.read_csv(directory / "results" / "validity.csv").filter(pl.col("severity") == "error")
    assert errors.rows() == []


def test_checkpoints_are_in_the_formats_that_transformers_knows(directory: Path) -> None:
    formats = {
        path.parent.name: Artifact.open(path).json("model/config.json")["model_type"]
        for path in (directory / "results" / "pretrain").glob("*/manifest.json")
    }
    assert {formats[f"{attention}-0.3m"] for attention in ("gqa", "mqa")} == {"qwen2"}
    assert formats["mla-0.3m"] == "deepseek_v3"
    assert formats["moe-0.3mx8"] == "qwen2_moe"
    assert formats["nsa-0.3m"] == formats["none-0.6m"] == "effllm"


def test_a_second_run_executes_nothing(workdir: Workdir) -> None:
    output = workdir.snakemake(*TARGETS)
    assert "Nothing to be done" in output.stdout + output.stderr
