"""Tables of trained models of the embedded study, a few rows of each, from nothing to their cells.

Every row of Tables 3 to 6 is in tests/unit/training/test_every_row.py.
"""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from effllm.study import parse_study
from tests.trained_rows import assert_trained_and_measured
from tests.workflow.conftest import Workdir

pytestmark = pytest.mark.slow

TARGETS = ("results/table3.csv", "results/curriculum.csv", "results/table7.csv", "results/validity.csv")
PRETRAINING = ("table3", "curriculum")
STEPS = 20
METHODS = ("lora", "freeze", "full-offload")
PAPER_COLUMNS = {
    "table3": ["method", "parameters", "micro_batch", "context", "PPL", "AMU_GB", "AL_s_per_iter"],
    "table7": ["model", "method", "loss", "AMU_GB", "PCU", "AL_s_per_iter", "ST_samples_per_param_s", "AEC_W"],
}


@pytest.fixture(scope="module")
def study(tiny_text: dict[str, Any]) -> dict[str, Any]:
    """A row of Table 3 that the curriculum has too, and three methods on one base model, trained for fewer steps."""
    tables = {
        "table3": {"rows": [row for row in tiny_text["tables"]["table3"]["rows"] if row["runs"] == ["gqa-0.3m"]]},
        "curriculum": tiny_text["tables"]["curriculum"],
        "table7": {"suite": "describe"},
    }
    short = {"max_steps": STEPS, "checkpoint_every_steps": STEPS}
    runs = {id: {**tiny_text["pretraining"][id], **short} for id in ("gqa-0.3m", "paced-0.3m")}
    runs["llama-1m"] = {**tiny_text["pretraining"]["llama-1m"], "max_steps": 100, "checkpoint_every_steps": 50}
    suite = {**tiny_text["finetuning"]["describe"], "models": ["llama-1m"], "methods": list(METHODS)}
    suite |= {"max_steps": 30, "checkpoint_every_steps": 10, "held_out_samples": 100}
    return {
        **tiny_text,
        "pretraining": runs,
        "models": {"llama-1m": tiny_text["models"]["llama-1m"]},
        "methods": {method: tiny_text["methods"][method] for method in METHODS},
        "finetuning": {"describe": suite},
        "tuning": {},
        "tables": tables,
    }


@pytest.fixture(scope="module")
def workdir(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A directory in which the workflow has built these tables from nothing."""
    workdir = Workdir(tmp_path_factory.mktemp("training"), study)
    workdir.snakemake(*TARGETS)
    return workdir


@pytest.fixture(scope="module")
def results(workdir: Workdir) -> Path:
    """Its results."""
    return workdir.path / "results"


@pytest.mark.parametrize("table", PAPER_COLUMNS)
def test_the_papers_columns_come_first(results: Path, table: str) -> None:
    columns = pl.read_csv(results / f"{table}.csv").columns
    assert columns[: len(PAPER_COLUMNS[table])] == PAPER_COLUMNS[table]


@pytest.mark.parametrize("table", PRETRAINING)
def test_every_row_is_there_trained_and_measured(results: Path, study: dict[str, Any], table: str) -> None:
    assert_trained_and_measured(pl.read_csv(results / f"{table}.csv"), study["tables"][table]["rows"], STEPS)


def test_a_run_that_stands_in_two_tables_is_trained_once(results: Path, study: dict[str, Any]) -> None:
    tables = parse_study(study, "study").tables
    listed = [run for name in PRETRAINING for row in getattr(tables, name).rows for run in row.runs]
    assert len(listed) > len(set(listed))
    built = {path.parent.name for path in (results / "pretrain").glob("*/manifest.json")}
    assert built == {*listed, "llama-1m"}


def test_every_method_has_learned_the_same_samples(results: Path, tiny_text: dict[str, Any]) -> None:
    frame = pl.read_csv(results / "table7.csv")
    assert frame["method"].to_list() == [tiny_text["methods"][method]["label"] for method in METHODS]
    # Others on the machine may disturb a measurement; a cell that failed would be a fault of ours.
    for row in frame.iter_rows(named=True):
        assert row["status"] == "ok" or row["reason"].startswith("disturbed"), row
    assert frame["samples_per_step"].n_unique() == frame["steps"].n_unique() == 1
    for row in frame.iter_rows(named=True):
        assert row["held_out_loss"] < row["held_out_loss_before"], row["method"]
        assert row["AL_s_per_iter"] > 0 and row["AMU_GB"] > 0
    lora, freeze, full = frame["parameters_trainable"].to_list()
    assert lora < freeze < full


def test_the_plausibility_rules_find_nothing_but_others_on_the_machine(results: Path) -> None:
    findings = pl.read_csv(results / "validity.csv")
    errors = findings.filter(pl.col("severity") == "error", pl.col("rule") != "disturbed")
    assert errors.rows() == []


def test_a_second_run_executes_nothing(workdir: Workdir) -> None:
    output = workdir.snakemake(*TARGETS)
    assert "Nothing to be done" in output.stdout + output.stderr
