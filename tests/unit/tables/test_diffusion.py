"""Tables 10 and 11 from written artifacts, their cells against numbers worked out by hand."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from effllm.assembly.assemble import assemble, write_csv
from effllm.decision.rows import read_table
from effllm.errors import CellFailure, UserError
from effllm.study import parse_study
from effllm.tables.descriptions import DESCRIPTIONS
from effllm.tables.show import print_table
from tests.unit.tables.conftest import EFFICIENCY, TELEMETRY, Study

# 10 steps of 32 images of 16 patches in 2.5 s.
STEPS = EFFICIENCY | {"tokens": 5120, "tokens_per_s": 2048.0}
QUALITY = {
    "held_out_images": 2,
    "held_out_loss": 0.4,
    "held_out_loss_stderr": 0.01,
    "images_seen": 32000,
    "parameters": 1000,
    "parameters_active": 1000,
    "reasons": {},
    "seed": 0,
    "tokens_per_image": 16,
    "train_images": 100,
}
LOSSES = {"image": [0, 1], "loss": [0.3, 0.5]}
PAPER_COLUMNS = ["model", "method", "FID", "AMU_GB", "AL_s_per_iter", "TT_tokens_per_param_s", "AEC_W"]
SAMPLE = {
    "images": 200, "seeds": [0, 1], "classes": 10, "size": 8, "channels": 1, "sampler": "euler", "steps": 20,
    "guidance": 1.0, "evaluations_per_image": 20,
}  # fmt: skip
COST = {
    "status": "ok", "reason": None, "findings": [], "device": EFFICIENCY["device"], "threads": 2, "cpus_usable": 2,
    "dtype": "float32", "batch_size": 100, "images": 400, "images_resumed": 0, "seconds_per_image": 0.01,
    "images_per_s": 100.0, "images_per_s_ci95": [90.0, 110.0], "energy_j_per_image": None,
    "energy_above_idle_j_per_image": None, "power_avg_w": None, "memory_peak_gb": 0.5, "flops_per_image": 1e6,
    "mfu": None, "idle": None, "telemetry": TELEMETRY,
    "reasons": dict.fromkeys(
        ("energy_j_per_image", "energy_above_idle_j_per_image", "power_avg_w", "mfu", "idle"), "no sensor; none"
    ),
}  # fmt: skip
_FIGURES = {"frechet_distance": 2.0, "kernel_distance": 0.1, "precision": 0.7, "recall": 0.6, "label_agreement": 0.9}
FIDELITY = {
    **_FIGURES, **{f"{key}_ci95": [value / 2, value * 1.5] for key, value in _FIGURES.items()},
    "images": 200, "seeds": 2, "reference": "train", "reference_images": 100, "neighbours": 3, "features": "digits",
    "features_kind": "trained", "features_width": 32, "features_accuracy": 0.97, "by_seed": [],
    "floor": {**_FIGURES, "frechet_distance": 0.5, "images": 100, "kernel_distance_ci95": [0.0, 0.1], "reasons": {}},
    "findings": [{"rule": "few_images", "severity": "warning", "message": "few images"}], "reasons": {},
}  # fmt: skip


@pytest.fixture
def plain(tiny: dict[str, Any], micro: dict[str, Any]) -> dict[str, Any]:
    """Some of the embedded study's rows, the first under two seeds."""
    # No longer than the 20 s that the artifacts say they took.
    runs = {id: tiny["diffusion"][id] | {"max_steps": 12} for id in ("dit-mha", "dit-nsa", "dit-mha-moe")}
    for run in runs.values():
        run["optimizer"] |= {"warmup_steps": 2}
    runs["dit-mha-again"] = copy.deepcopy(runs["dit-mha"]) | {"seed": 1}
    rows: list[dict[str, Any]] = [
        {"model": "DiT", "method": "MHA", "runs": ["dit-mha", "dit-mha-again"]},
        {"model": "DiT", "method": "NSA", "runs": ["dit-nsa"]},
        {"model": "DiT", "method": "MoE x8", "runs": ["dit-mha-moe"]},
    ]
    sampling = {"few": {**tiny["sampling"]["digits"], "runs": list(runs)}}
    own = {"sampling": sampling, "fidelity": {"near": {**tiny["fidelity"]["digits"], "sampling": "few"}}}
    tables = {"table11": {"rows": rows, "fidelity": "near"}, "table10": {"rows": rows[1:2]}}
    return micro | own | {
        "images": tiny["images"], "features": tiny["features"], "diffusion": runs, "tables": tables
    }  # fmt: skip


@pytest.fixture
def study(plain: dict[str, Any], tmp_path: Path) -> Study:
    """Those, with all artifacts."""
    study = Study(plain, tmp_path)
    for run in study.graph.study.diffusion:
        losses = {**LOSSES, "loss": [0.2, 0.4]} if run == "dit-nsa" else LOSSES
        study.train(run, STEPS, QUALITY, stage="diffuse", held_out=losses)
        study.write("sample", f"{run}.few", "sample.json", SAMPLE, records={"sampling.json": json.dumps(COST)})
        study.write("fidelity", f"{run}.near", "fidelity.json", FIDELITY)
    return study


def test_the_papers_columns_come_first_and_all_are_described(study: Study) -> None:
    for name in ("table10", "table11"):
        header = list(study.rows(name)[0])
        assert header[: len(PAPER_COLUMNS)] == PAPER_COLUMNS
        assert header[-3:] == ["status", "reason", "not_measured"]
        assert list(DESCRIPTIONS[name].columns(header)) == header


def test_figures_of_a_row(study: Study) -> None:
    row = study.rows("table11")[1]
    assert (row["tokens_per_image"], row["tokens_per_s"], row["images_per_s"]) == (16, 2048.0, 128.0)
    assert row["TT_tokens_per_param_s"] == 2.048, "5,120 patches in 2.5 s, of 1,000 parameters"
    assert (row["FID"], row["FID_low"], row["FID_high"], row["FID_floor"]) == (2.0, 1.0, 3.0, 0.5)
    assert (row["KID"], row["precision"], row["recall"], row["label_agreement"]) == (0.1, 0.7, 0.6, 0.9)
    assert (row["fidelity_images"], row["fidelity_seeds"], row["fidelity_reference"]) == (200, 2, "train")
    assert row["features"] == "digits (trained, 32 features, accuracy 0.97)"
    assert row["sampler"] == "euler, 20 steps, guidance 1"
    assert (row["sampling_images_per_s"], row["sampling_images_per_s_low"]) == (100.0, 90.0)
    assert row["sampling_J_per_image"] is None and "sampling_J_per_image, util_nvml" in row["not_measured"]
    assert row["held_out_loss_low"] == pytest.approx(0.4 - 1.96 * 0.01, rel=1e-4)
    assert (row["status"], row["experts"]) == ("ok", None)
    assert "few images" in row["warnings"]
    assert study.rows("table11")[2]["experts"] == "8 of 168 (SwiGLU), top 2"


def test_without_a_fidelity_the_training_stands_alone(study: Study) -> None:
    (row,) = study.rows("table10")
    assert row["FID"] is None and row["sampling_images_per_s"] is None and row["images_per_s"] == 128.0
    assert "the table names no fidelity" in row["not_measured"] and row["status"] == "ok"


def test_seeds_of_a_training_give_the_interval_of_a_distance(study: Study) -> None:
    other = FIDELITY | {"frechet_distance": 3.0}
    study.write("fidelity", "dit-mha-again.near", "fidelity.json", other)
    row = study.rows("table11")[0]
    assert (row["FID"], row["seeds"]) == (2.5, "0, 1")
    # Student's t for one degree of freedom is 12.7062; the standard error of 2 and 3 is 0.5.
    assert row["FID_high"] == pytest.approx(2.5 + 12.7062 * 0.5, rel=1e-4)


def test_what_failed_or_was_disturbed_leaves_its_own_cells_empty(study: Study) -> None:
    disturbed = COST | {"status": "invalid", "reason": "disturbed: others"}
    study.write("sample", "dit-nsa.few", "sample.json", SAMPLE, records={"sampling.json": json.dumps(disturbed)})
    study.write("fidelity", "dit-mha-moe.near", "fidelity.json", FIDELITY, CellFailure("nan", "no number"))
    _, nsa, moe = study.rows("table11")
    assert nsa["sampling_images_per_s"] is None and nsa["FID"] == 2.0 and nsa["status"] == "ok"
    assert "sampling was invalid: disturbed: others" in nsa["not_measured"]
    assert moe["FID"] is None and "fidelity is nan: no number" in moe["not_measured"]
    findings = study.rows("validity")
    assert ("fidelity", "dit-mha-moe.near", "nan") in {(row["stage"], row["id"], row["rule"]) for row in findings}


def test_held_out_images_are_paired(study: Study) -> None:
    pairs = {(row["row"], row["column"]): row for row in study.rows("table11-pairs")}
    loss = pairs["DiT NSA", "held_out_loss"]
    assert loss["change"] == pytest.approx(-0.1) and loss["items"] == 2
    assert pairs["DiT NSA", "FID"]["reason_code"] == "no_interval"


def test_a_table_is_printed_and_read_for_decisions(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table11.csv"
    write_csv(assemble("table11", study.graph.table_spec("table11"), study.graph.table_parents("table11")), path)
    print_table(path)
    assert "MoE x8" in capsys.readouterr().out
    table = read_table(path)
    assert table.direction("FID") == "lower" and table.rows[1].figures["FID"].low == 1.0


def test_a_row_without_a_valid_result_is_printed_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("model,method,FID,status,reason", "DiT,MHA,0.3,ok,", "DiT,NSA,0.2,invalid,disturbed: others")
    (tmp_path / "table10.csv").write_text("\n".join(lines) + "\n")
    print_table(tmp_path / "table10.csv")
    said = capsys.readouterr().out
    assert "DiT NSA: invalid. disturbed: others" in said and "DiT MHA:" not in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("diffusion", "dit-nsa", "global_batch_size", 64), "'dit-nsa' takes 64 images a step and 'dit-mha' 32"),
        (("tables", "table11", "fidelity", "far"), "tables.table11.fidelity: 'far' does not exist"),
        (("sampling", "few", "runs", ["dit-mha"]), "sampling.few.runs: 'dit-mha-again' does not exist"),
    ],
)
def test_what_a_table_cannot_show_is_refused(plain: dict[str, Any], change: tuple[Any, ...], says: str) -> None:
    study = copy.deepcopy(plain)
    section, id, key, value = change
    study[section][id][key] = value
    with pytest.raises(UserError, match=says):
        parse_study(study, "test")
