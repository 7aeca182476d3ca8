"""Tables 3 to 6 of the embedded study, one size of each row: every architecture learns, is saved and is tabulated."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from effllm.assembly.assemble import assemble, write_csv
from effllm.stages.graph import Graph
from effllm.study import load_study
from tests.conftest import REPOSITORY
from tests.trained_rows import assert_trained_and_measured
from tests.unit.conftest import Builder

STUDY = load_study(REPOSITORY / "config" / "tiny.yaml")
TABLES = ("table3", "table4", "table5", "table6")
PAPER_COLUMNS = {
    "table3": ["method", "parameters", "micro_batch", "context", "PPL", "AMU_GB", "AL_s_per_iter"],
    "table5": ["method", "parameters", "top_k", "micro_batch", "context", "PPL", "AMU_GB", "AL_s_per_iter"],
}
VOCABULARY = 2048
STEPS = 60


def _smallest(table: str) -> list[Any]:
    """Rows of the table's smallest size, and of its smallest with experts. The others of a row are the same code."""
    rows = getattr(STUDY.tables, table).rows
    smallest = {}
    for size in sorted((row.parameters for row in rows), reverse=True):
        smallest["x" in size] = size
    return [row for row in rows if row.parameters in smallest.values()]


ROWS = {table: [row.plain() for row in _smallest(table)] for table in TABLES}
RUNS = sorted({run for rows in ROWS.values() for row in rows for run in row["runs"]})


@pytest.fixture(scope="module")
def short_runs(builder: Builder, tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """The tiny study's tables of pretraining, their smallest size, trained for half their steps."""
    short = {"max_steps": STEPS, "checkpoint_every_steps": STEPS}
    study = {
        **tiny_text,
        **{"models": {}, "finetuning": {}},
        "pretraining": {run: {**tiny_text["pretraining"][run], **short} for run in RUNS},
        "tables": {table: {"rows": rows} for table, rows in ROWS.items()},
    }
    return Builder(json.loads(json.dumps(study)), tmp_path_factory.mktemp("rows")).take_text(builder)


def test_every_pretraining_run_of_the_study_stands_in_a_table() -> None:
    sources = {model.source.run for model in STUDY.models.values() if model.source.kind == "pretrained"}
    tables = [getattr(STUDY.tables, name) for name in (*TABLES, "curriculum")]
    assert {run for table in tables for row in table.rows for run in row.runs} | sources == set(STUDY.pretraining)
    assert sorted(Graph(STUDY).ids("pretrain")) == sorted(STUDY.pretraining)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_it_learns(short_runs: Builder, run: str) -> None:
    artifact = short_runs.build("pretrain", run)
    result = artifact.json("training.json")
    curve = json.loads((Path(artifact.directory) / "records" / "loss_curve.json").read_text())["curve"]
    # Random weights predict every word alike: the perplexity of the vocabulary's size.
    assert result["held_out_perplexity"] < 0.4 * VOCABULARY
    assert result["held_out_loss_stderr"] < 0.1
    assert math.log(VOCABULARY) + 0.5 > curve[0]["loss"] > curve[-1]["loss"] + 0.7
    assert curve[-1]["step"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_there_trained_and_measured(short_runs: Builder, tmp_path: Path, table: str) -> None:
    frame = pl.read_csv(_written(short_runs, table, tmp_path))
    assert frame.columns[: len(PAPER_COLUMNS.get(table, []))] == PAPER_COLUMNS.get(table, [])
    assert_trained_and_measured(frame, ROWS[table], STEPS)


@pytest.mark.slow
def test_the_plausibility_rules_find_nothing_but_other_tests(short_runs: Builder, tmp_path: Path) -> None:
    findings = pl.read_csv(_written(short_runs, "validity", tmp_path))
    errors = findings.filter(pl.col("severity") == "error", pl.col("rule") != "disturbed")
    assert errors.rows() == []


@pytest.mark.slow
def test_checkpoints_are_in_the_formats_that_transformers_knows(short_runs: Builder) -> None:
    formats = {run: short_runs.build("pretrain", run).json("model/config.json")["model_type"] for run in RUNS}
    assert {formats[f"{attention}-0.3m"] for attention in ("gqa", "mqa")} == {"qwen2"}
    assert formats["mla-0.3m"] == "deepseek_v3"
    assert formats["moe-0.3mx8"] == "qwen2_moe"
    assert formats["nsa-0.3m"] == formats["none-0.6m"] == "effllm"


def _written(builder: Builder, table: str, directory: Path) -> Path:
    """A table of what the builder has built."""
    for run in RUNS:
        builder.build("pretrain", run)
    path = directory / f"{table}.csv"
    write_csv(assemble(table, builder.graph.table_spec(table), builder.graph.table_parents(table)), path)
    return path
