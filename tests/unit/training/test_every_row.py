"""No architecture of Tables 3 to 6 is left untrained by a fault: each learns the embedded text."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from effllm.stages.graph import Graph
from effllm.study import load_study
from tests.conftest import REPOSITORY
from tests.unit.conftest import Builder

STUDY = load_study(REPOSITORY / "config" / "tiny.yaml")
TABLES = (STUDY.tables.table3, STUDY.tables.table4, STUDY.tables.table5, STUDY.tables.table6)
RUNS = sorted({run for table in TABLES for row in table.rows for run in row.runs})
VOCABULARY = 2048
STEPS = 60
# Runs are named family-size, and sizes sort by their names. The other sizes of a family are the same code; the embedded
# study trains them for its tables.
SMALLEST = {run.partition("-")[0]: run for run in reversed(RUNS)}


@pytest.fixture(scope="module")
def short_runs(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """The tiny study with its rows trained for half their steps."""
    study = json.loads(json.dumps(tiny_text))
    for run in SMALLEST.values():
        study["pretraining"][run].update(max_steps=STEPS, checkpoint_every_steps=STEPS)
    return Builder(study, tmp_path_factory.mktemp("rows"))


def test_every_pretraining_run_of_the_study_stands_in_a_table() -> None:
    sources = {model.source.run for model in STUDY.models.values() if model.source.kind == "pretrained"}
    in_order = {run for row in STUDY.tables.curriculum.rows for run in row.runs}
    assert set(RUNS) | sources | in_order == set(STUDY.pretraining)
    assert sorted(Graph(STUDY).ids("pretrain")) == sorted(STUDY.pretraining)


@pytest.mark.slow
@pytest.mark.parametrize("run", SMALLEST.values())
def test_it_learns(short_runs: Builder, run: str) -> None:
    artifact = short_runs.build("pretrain", run)
    result = artifact.json("training.json")
    curve = json.loads((Path(artifact.directory) / "records" / "loss_curve.json").read_text())["curve"]
    # Random weights predict every word alike: the perplexity of the vocabulary's size.
    assert result["held_out_perplexity"] < 0.4 * VOCABULARY
    assert result["held_out_loss_stderr"] < 0.1
    assert math.log(VOCABULARY) + 0.5 > curve[0]["loss"] > curve[-1]["loss"] + 0.7
    assert curve[-1]["step"] == STEPS
