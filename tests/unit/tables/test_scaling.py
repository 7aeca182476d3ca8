"""results/scaling.csv from artifacts written by hand: which runs are fitted, and what each cell says."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from effllm.errors import CellFailure, UserError
from effllm.study import parse_study
from effllm.tables.show import print_table
from tests.unit.tables.conftest import EFFICIENCY, QUALITY, Study

SIZES = {"1M": 1e6, "2M": 2e6, "4M": 4e6, "8M": 8e6}
E, A, ALPHA = 2.0, 300.0, 0.4
CURVE = {"points": 3, "tokens": 2000}


def _loss(parameters: float) -> float:
    return E + A / parameters**ALPHA


@pytest.fixture
def laws(micro: dict[str, Any]) -> dict[str, Any]:
    """Table 3 with two methods of four sizes, and one more of a single size."""
    runs, rows = micro["pretraining"], []
    for method in ("GQA", "MQA"):
        for size in SIZES:
            runs[id := f"{method}-{size}"] = copy.deepcopy(runs["llama-1m"])
            rows.append({"method": method, "parameters": size, "runs": [id]})
    rows.append({"method": "Alone", "parameters": "1M", "runs": ["llama-1m"]})
    micro["tables"] = {"table3": {"rows": rows}}
    return micro | {"scaling": {"target": {"parameters": 80_000_000}}}


def _trained(study: Study, factors: dict[str, float], bent: float = 1.0, **quality: Any) -> None:
    """All runs, a method's losses times its factor; one loss of each times `bent`."""
    study.complete()
    for method, factor in factors.items():
        for size, parameters in SIZES.items():
            loss = factor * _loss(parameters) * (bent if size == "2M" else 1.0)
            content = QUALITY | {"parameters_active": int(parameters), "held_out_loss": loss} | quality
            study.train(f"{method}-{size}", EFFICIENCY, content)


def test_a_law_per_technique_with_its_rank_and_probability(
    laws: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(laws, tmp_path)
    assert "scaling" in study.graph.tables()
    _trained(study, {"GQA": 1.0, "MQA": 0.9}, bent=1.001)
    gqa, mqa = study.rows("scaling")
    assert (gqa["table"], gqa["method"], mqa["method"]) == ("table3", "GQA", "MQA"), "one size is no law"
    assert gqa["fitted"] == "E + A/N^alpha at D = 3.07e+03"
    assert (gqa["points"], gqa["N_min"], gqa["N_max"], gqa["D_max"]) == (4, 1e6, 8e6, 3072)
    assert gqa["alpha_low"] < ALPHA < gqa["alpha_high"]
    assert gqa["alpha"] == pytest.approx(ALPHA, rel=0.1) and gqa["E"] == pytest.approx(E, rel=0.05)
    assert (gqa["beta"], gqa["B"], gqa["tokens_per_parameter"]) == (None, None, None)
    assert "B, beta, beta_low, beta_high: D does not vary" in gqa["not_measured"]
    assert (gqa["target_N"], gqa["target_D"], gqa["extrapolation"]) == (8e7, 3072, 10)
    assert gqa["predicted_loss_low"] <= gqa["predicted_loss"] <= gqa["predicted_loss_high"]
    assert gqa["predicted_loss"] == pytest.approx(_loss(8e7), rel=0.01)
    assert (gqa["rank"], mqa["rank"]) == ("2", "1") and mqa["rank_probability"] > 0.95
    assert mqa["rank_probabilities"] == "1: {:.1f} %, 2: {:.1f} %".format(
        100 * mqa["rank_probability"], 100 - 100 * mqa["rank_probability"]
    )
    assert gqa["learning_rate"].endswith("at every size") and gqa["runs"].startswith("GQA-1M, GQA-2M")
    path = tmp_path / "scaling.csv"
    path.write_text("table,method,rank\n" + f"table3,GQA,{gqa['rank']}\n")
    print_table(path)
    assert "GQA" in capsys.readouterr().out


def test_intervals_that_overlap_leave_the_rank_unsaid(laws: dict[str, Any], tmp_path: Path) -> None:
    study = Study(laws, tmp_path)
    _trained(study, {"GQA": 1.0, "MQA": 1.0005}, bent=1.01)
    gqa, mqa = study.rows("scaling")
    assert gqa["rank"] == mqa["rank"] == "cannot be said" and gqa["rank_probability"] is None
    assert "its interval overlaps that of MQA" in gqa["not_measured"]
    assert gqa["rank_probabilities"].count("%") == 2


def test_points_on_the_way_give_tokens_where_rates_stay(laws: dict[str, Any], tmp_path: Path) -> None:
    for run in laws["pretraining"].values():
        rate = run["optimizer"]["learning_rate"]
        run |= {"held_out_curve": CURVE, "optimizer": run["optimizer"] | {"minimum_learning_rate": rate}}
    study = Study(laws, tmp_path)
    assert study.graph.table_spec("scaling")["config"]["tables"]["table3"]["on_the_way"]
    # A single size with three token counts is a law too.
    assert set(study.graph.table_spec("scaling")["config"]["tables"]["table3"]["techniques"]) == {"GQA", "MQA", "Alone"}
    _trained(study, {"GQA": 1.0, "MQA": 0.9})
    for id in study.graph.study.pretraining:
        directory = Path(study.graph.manifest("pretrain", id)).parent
        record = json.loads((directory / "training.json").read_text())
        curve = [
            {"step": step, "tokens_seen": 256 * step, "tokens": 1999, "loss": record["held_out_loss"] + 9 / step**0.5}
            for step in (3, 6, 12)
        ]
        _record(directory, {"curve": [], "held_out": curve})
    rows = {row["method"]: row for row in study.rows("scaling")}
    assert rows["GQA"]["fitted"] == "E + A/N^alpha + B/D^beta" and rows["GQA"]["points"] == 12
    assert rows["GQA"]["alpha"] == pytest.approx(ALPHA, rel=0.02) and rows["GQA"]["beta"] == pytest.approx(
        0.5, rel=0.02
    )
    assert rows["GQA"]["tokens_per_parameter"] > 0
    assert rows["Alone"]["fitted"].startswith("E + B/D^beta at N = ") and rows["Alone"]["alpha"] is None


def test_points_on_the_way_of_decaying_rates_are_left_out_unless_asked_for(laws: dict[str, Any]) -> None:
    for run in laws["pretraining"].values():
        run["held_out_curve"] = CURVE
    counted = {}
    for choice in ("constant", "all", "none"):
        laws["scaling"]["on_the_way"] = choice
        study = parse_study(laws, "test")
        assert study.scaling
        counted[choice] = study.scaling.content(study)["tables"]["table3"]["on_the_way"]
    assert counted == {"constant": False, "all": True, "none": False}


def test_warnings_and_failed_runs(laws: dict[str, Any], tmp_path: Path) -> None:
    wide = laws["pretraining"]["GQA-8M"]
    wide["architecture"] = wide["architecture"] | {"hidden_size": 256}
    laws["scaling"]["target"]["parameters"] = 800_000_000
    study = Study(laws, tmp_path)
    _trained(study, {"GQA": 1.0, "MQA": 1.0}, train_sequences=10)
    study.train("MQA-8M", EFFICIENCY, failure=CellFailure("nan", "the loss is lost"))
    gqa, mqa = study.rows("scaling")
    for warning in ("one learning rate for all sizes", "passes over the text", "predicted 100 times beyond the data"):
        assert warning in gqa["warnings"], warning
    assert mqa["points"] == 3 and mqa["alpha_low"] is not None, "the other technique shows how far runs scatter"
    assert mqa["reason"] == "MQA-8M is left out: pretrain is nan: the loss is lost"


def test_techniques_on_different_texts_are_not_ranked_together(laws: dict[str, Any], tmp_path: Path) -> None:
    study = Study(laws, tmp_path)
    _trained(study, {"GQA": 1.0, "MQA": 0.9})
    for size, parameters in SIZES.items():
        content = QUALITY | {"parameters_active": int(parameters), "held_out_loss": _loss(parameters)}
        study.train(f"MQA-{size}", EFFICIENCY, content | {"held_out_tokens": 77})
    assert all("no other technique of the table is predicted" in row["not_measured"] for row in study.rows("scaling"))


def test_rates_by_width_are_named(laws: dict[str, Any], tmp_path: Path) -> None:
    for run in laws["pretraining"].values():
        run["learning_rate_by_width"] = {"width": 64}
    study = Study(laws, tmp_path)
    _trained(study, {"GQA": 1.0, "MQA": 0.9})
    assert study.rows("scaling")[0]["learning_rate"].endswith(" times (width/64)^-1")


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"tables": ["table4"]}, "scaling.tables: 'table4' does not exist"),
        ({"tables": ["table3"], "draws": 10}, "scaling.draws"),
        ({"tables": [], "target": {"parameters": 0}}, "scaling.target.parameters"),
    ],
)
def test_bad_sections_are_named(laws: dict[str, Any], scaling: dict[str, Any], message: str) -> None:
    laws["scaling"] = laws["scaling"] | scaling
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        parse_study(laws, "test")


def test_a_study_without_enough_sizes_is_refused(laws: dict[str, Any]) -> None:
    del laws["tables"]["table3"]["rows"][2:8]
    with pytest.raises(UserError, match="scaling: no technique of table3 has 3 different sizes or token counts"):
        parse_study(laws, "test")


def _record(directory: Path, curve: dict[str, Any]) -> None:
    """A loss curve as the run would have recorded it, digest included."""
    from effllm.runtime.artifact import PROVENANCE, digest_file

    path = directory / "records" / "loss_curve.json"
    path.write_text(json.dumps(curve))
    provenance = json.loads((directory / PROVENANCE).read_text())
    provenance["records"]["records/loss_curve.json"] = vars(digest_file(path))
    (directory / PROVENANCE).write_text(json.dumps(provenance))
