"""Each recipe of `effllm init`, to its table and its answer, on a processor."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from effllm.cli import main
from tests.conftest import run_snakemake
from tests.json_lines import write_lines
from tests.unit.models.foreign import write_model
from tests.workflow.conftest import LOCAL

pytestmark = pytest.mark.slow

# Windows of one generation of two tokens, and a few steps: what is measured means nothing here.
INFERENCE = {
    "workloads": {id: {"prompt_tokens": 8, "new_tokens": 2} for id in ("single", "batch")},
    "idle_s": 0.1,
    "warmup_maximum": 3,
    "repeats": 2,
    "minimum_window_s": 0.01,
    "cooldown_s": 0.0,
    "maximum_relative_interval": 1000,
}
STEPS = {"max_steps": 4, "optimizer": {"warmup_steps": 1}}
ROWS = {"int4": 2, "tune": 5, "attention": 4, "pretrain": 5}
# Answered, nothing fits, or not decidable: all are answers.
ANSWERS = (0, 3, 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, conversations, and the results that the recipes share."""
    path = tmp_path_factory.mktemp("recipes")
    write_model(path / "mine", hidden_size=64, intermediate_size=64, max_position_embeddings=512)
    rows = [{"prompt": f"Add {n} and 1.", "response": str(n + 1)} for n in range(60)]
    write_lines(path / "mine.jsonl", rows)
    return path


@pytest.mark.parametrize("recipe", ["int4", "tune", "attention", "pretrain"])
def test_a_recipe_ends_with_its_answer(recipe: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / f"{recipe}.yaml"
    words = {
        "int4": ["--model", str(place / "mine"), "--benchmarks", "word-order"],
        "tune": ["--model", str(place / "mine"), "--data", str(place / "mine.jsonl")],
    }.get(recipe, [])
    with pytest.raises(SystemExit, match="0"):
        main(["init", "--recipe", recipe, "--device", "cpu", *words, "-o", str(file)])
    said = capsys.readouterr().out
    recommend = re.search(r"^ *effllm (recommend results/(\S+)\.csv.*)$", said, re.MULTILINE)
    assert recommend
    study = yaml.safe_load(file.read_text())
    _shorten(recipe, study)
    file.write_text(yaml.safe_dump(study))

    # Runs of the same name differ between the two recipes that train.
    directory = place / "apart" if recipe == "attention" else place
    directory.mkdir(exist_ok=True)
    run_snakemake(directory, *LOCAL, "--config", f"study={file}", "--", f"results/{recommend[2]}.csv")
    results = directory / "results"
    frame = pl.read_csv(results / f"{recommend[2]}.csv")
    assert frame.height == ROWS[recipe]
    for status, reason in frame.select("status", "reason").rows():
        # Others on the machine may disturb a measurement.
        assert status == "ok" or reason.startswith("disturbed"), reason
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(recommend[1].replace("results/", f"{results}/", 1)))
    assert ended.value.code in ANSWERS and capsys.readouterr().out


def _shorten(recipe: str, study: dict[str, Any]) -> None:
    """The study with less of everything, as a user's edits would make it."""
    if recipe in ("int4", "attention"):
        study["inference"] = INFERENCE
    if recipe == "int4":
        study["benchmarks"] = {"word-order": {"items": 8}}
        study["precisions"] = {"int4": {"calibration": {"samples": 4, "sequence_length": 64}}}
    if recipe == "tune":
        study["finetuning"]["tune"] |= {"max_steps": 2, "held_out_samples": 4}
    if recipe == "pretrain":
        for run in study["pretraining"].values():
            run |= json.loads(json.dumps(STEPS))
