"""Table 7 of the embedded study, one base model and three methods, from nothing to its cells."""

from typing import Any

import polars as pl
import pytest

from tests.workflow.conftest import Workdir

pytestmark = pytest.mark.slow

TARGETS = ("results/table7.csv", "results/validity.csv")
METHODS = ("lora", "freeze", "full-offload")
PAPER_COLUMNS = ["model", "method", "loss", "AMU_GB", "PCU", "AL_s_per_iter", "ST_samples_per_param_s", "AEC_W"]


@pytest.fixture(scope="module")
def workdir(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A directory in which the workflow has built the table from nothing, training half as long as the study."""
    suite = {**tiny_text["finetuning"]["describe"], "models": ["llama-1m"], "methods": list(METHODS)}
    suite |= {"max_steps": 30, "checkpoint_every_steps": 10, "held_out_samples": 100}
    run = {**tiny_text["pretraining"]["llama-1m"], "max_steps": 100, "checkpoint_every_steps": 50}
    study = {
        **tiny_text,
        "pretraining": {"llama-1m": run},
        "models": {"llama-1m": tiny_text["models"]["llama-1m"]},
        "methods": {method: tiny_text["methods"][method] for method in METHODS},
        "finetuning": {"describe": suite},
        "tables": {"table7": {"suite": "describe"}},
    }
    workdir = Workdir(tmp_path_factory.mktemp("finetuning"), study)
    workdir.snakemake(*TARGETS)
    return workdir


def test_every_method_has_learned_the_same_samples(workdir: Workdir, tiny_text: dict[str, Any]) -> None:
    frame = pl.read_csv(workdir.path / "results" / "table7.csv")
    assert frame.columns[: len(PAPER_COLUMNS)] == PAPER_COLUMNS
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


def test_the_plausibility_rules_find_no_fault(workdir: Workdir) -> None:
    errors = pl.read_csv(workdir.path / "results" / "validity.csv").filter(pl.col("severity") == "error")
    assert errors.rows() == []


def test_a_second_run_executes_nothing(workdir: Workdir) -> None:
    output = workdir.snakemake(*TARGETS)
    assert "Nothing to be done" in output.stdout + output.stderr
