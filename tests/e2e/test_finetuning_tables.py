"""Table 7 of the embedded study, one base model and three methods, from nothing to its cells."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from tests.conftest import run_snakemake

METHODS = ("lora", "freeze", "full-offload")
PAPER_COLUMNS = ["model", "method", "loss", "AMU_GB", "PCU", "AL_s_per_iter", "ST_samples_per_param_s", "AEC_W"]


@pytest.fixture(scope="module")
def directory(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    directory = tmp_path_factory.mktemp("finetuning")
    (directory / "study.yaml").write_text(yaml.safe_dump(study))
    run_snakemake(directory, *_arguments(directory))
    return directory


def _arguments(directory: Path) -> list[str]:
    targets = ["results/table7.csv", "results/validity.csv"]
    return ["--profile", "profiles/local", "--config", f"study={directory / 'study.yaml'}", "--", *targets]


def test_every_method_has_learned_the_same_samples(directory: Path, tiny_text: dict[str, Any]) -> None:
    frame = pl.read_csv(directory / "results" / "table7.csv")
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


def test_the_plausibility_rules_find_no_fault(directory: Path) -> None:
    errors = pl.read_csv(directory / "results" / "validity.csv").filter(pl.col("severity") == "error")
    assert errors.rows() == []


def test_a_second_run_executes_nothing(directory: Path) -> None:
    output = run_snakemake(directory, *_arguments(directory))
    assert "Nothing to be done" in output.stdout + output.stderr
