"""Tables 7 and 8 from written artifacts, their cells against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from effllm.assembly.assemble import assemble, write_csv
from effllm.errors import CellFailure, UserError
from effllm.tables.descriptions import DESCRIPTIONS
from effllm.tables.show import print_table
from tests.unit.tables.conftest import DEVICE, EFFICIENCY, LEARNED, TELEMETRY, Study

WHOLE_MODEL = LEARNED | {
    "adapter_bytes": None,
    "parameters_trainable": 1000,
    "reasons": {"adapter_bytes": "the model itself is trained"},
}


@pytest.fixture
def study(micro: dict[str, Any], tmp_path: Path) -> Study:
    """Table 7: two models, of which one has a label, by two methods; everything tuned."""
    micro["instructions"] = {
        "questions": {"source": {"kind": "embedded", "questions": "name"}, "held_out_fraction": 0.1}
    }
    micro["methods"] = {
        "lora": {"kind": "lora", "rank": 4, "alpha": 8, "label": "LoRA"},
        "full": {"kind": "full"},
    }
    micro["finetuning"] = {
        "names": {
            "instructions": "questions",
            "encoding": {"template": "plain", "sequence_length": 64},
            # Not in the order of the alphabet: rows keep the suite's order.
            "models": ["qwen2-1m", "llama-1m"],
            "methods": ["lora", "full"],
            "samples_per_step": 8,
            "max_steps": 40,
            "learning_rate": 1.0e-3,
            "micro_batch_size": 4,
            "micro_batch_size_by_method": {"full": 2},
            "checkpoint_every_steps": 10,
            "dtype": "float32",
        }
    }
    micro["models"]["qwen2-1m"].pop("label")
    micro["tables"] = {"table7": {"suite": "names"}}
    study = Study(micro, tmp_path)
    for run in ("llama-1m", "qwen2-1m"):
        study.train(run, EFFICIENCY)
        _tune(study, f"{run}.names.lora")
        _tune(study, f"{run}.names.full", WHOLE_MODEL)
    return study


def _tune(
    study: Study,
    id: str,
    learned: dict[str, Any] = LEARNED,
    efficiency: dict[str, Any] = EFFICIENCY,
    failure: CellFailure | None = None,
) -> Path:
    return study.train(id, efficiency, learned, failure, stage="finetune")


def test_rows_are_models_by_methods_in_the_suites_order(study: Study) -> None:
    rows = study.rows("table7")
    assert [(row["model"], row["method"]) for row in rows] == [
        ("qwen2-1m", "LoRA"),
        ("qwen2-1m", "full"),
        ("Llama-1M", "LoRA"),
        ("Llama-1M", "full"),
    ]
    assert list(rows[0])[:8] == [
        "model",
        "method",
        "loss",
        "AMU_GB",
        "PCU",
        "AL_s_per_iter",
        "ST_samples_per_param_s",
        "AEC_W",
    ]
    assert {row["status"] for row in rows} == {"ok"}


def test_figures_are_those_of_the_artifacts(study: Study) -> None:
    row = study.rows("table7")[0]
    assert (row["loss"], row["loss_last"]) == (2.0, 1.25)
    assert (row["held_out_loss"], row["held_out_loss_before"]) == (1.5, 3.0)
    assert row["held_out_loss_low"] == pytest.approx(1.5 - 1.96 * 0.05)
    assert row["held_out_loss_high"] == pytest.approx(1.5 + 1.96 * 0.05)
    assert row["AMU_GB"] == 0.5
    assert row["AL_s_per_iter"] == 0.25
    assert row["AL_s_per_sample"] == 0.03125, "8 samples per step"
    assert row["ST_samples_per_param_s"] == 0.032, "80 samples in 2.5 s on 1000 parameters"
    assert (row["samples_per_step"], row["micro_batch"], row["steps"], row["samples_seen"]) == (8, 4, 40, 320)
    assert (row["parameters_total"], row["parameters_trainable"], row["adapter_bytes"]) == (1000, 64, 4096)
    assert row["training_hours"] == pytest.approx(40 * 0.25 / 3600, rel=1e-5)
    assert row["PCU"] is None
    assert "no sensor; none" in row["not_measured"]


def test_what_an_energy_meter_says_is_per_sample(study: Study) -> None:
    metered = TELEMETRY | {
        "energy_j": 60.0,
        "energy_scope": "gpu",
        "energy_source": "nvml: counter",
        "memory_device_avg_gb": 20.0,
        "memory_device_peak_gb": 25.0,
        "memory_total_gb": 80.0,
        "power_avg_w": 24.0,
        "power_peak_w": 30.0,
        "reasons": {},
        "util_nvml": 0.75,
    }
    on_gpu = {"device": DEVICE | {"kind": "cuda", "name": "a GPU"}, "telemetry": metered, "world_size": 2}
    _tune(study, "qwen2-1m.names.lora", efficiency=EFFICIENCY | on_gpu)
    row = study.rows("table7")[0]
    assert row["PCU"] == 0.75
    assert row["AEC_W"] == 24.0
    assert row["energy_J_per_sample"] == 1.5, "60 J for rank 0's half of 80 samples"
    assert row["GPU_hours"] == pytest.approx(40 * 0.25 * 2 / 3600, rel=1e-5)


def test_a_method_without_an_adapter_says_so(study: Study) -> None:
    row = study.rows("table7")[1]
    assert row["adapter_bytes"] is None
    assert "adapter_bytes: the model itself is trained" in row["not_measured"]
    assert (row["parameters_trainable"], row["micro_batch"]) == (1000, 2)


def test_a_rank_is_printed_with_the_parameters_that_it_matches(
    study: Study, micro: dict[str, Any], tmp_path: Path
) -> None:
    lora, full = study.rows("table7")[:2]
    assert (lora["adapter_rank"], lora["parameters_matched"], full["adapter_rank"]) == (4, None, None)
    assert "adapter_rank: the method has no rank" in full["not_measured"]
    micro["methods"]["full"] = {"kind": "loha", "match_parameters": "lora"}
    matched = Study(micro, tmp_path / "matched")
    for run in ("llama-1m", "qwen2-1m"):
        matched.train(run, EFFICIENCY)
        _tune(matched, f"{run}.names.lora")
        _tune(matched, f"{run}.names.full", LEARNED | {"adapter_rank": 2, "parameters_matched": 64})
    row = matched.rows("table7")[1]
    assert (row["adapter_rank"], row["parameters_trainable"], row["parameters_matched"]) == (2, 64, 64)
    spec = matched.graph.spec("finetune", "llama-1m.names.full")["config"]["method"]
    assert spec["match_parameters"] == {"rank": 4, "target_modules": "all-linear"}
    micro["methods"]["lora"] |= {"alpha": 16, "dropout": 0.5}
    after = Study(micro, tmp_path / "after").graph.spec("finetune", "llama-1m.names.full")["config"]["method"]
    assert after == spec, "only what decides the count is its own"


@pytest.mark.parametrize("status", ["oom", "nan", "unsupported"])
def test_a_failed_method_keeps_its_row(study: Study, status: Any) -> None:
    _tune(study, "qwen2-1m.names.full", failure=CellFailure(status, "it does not fit"))
    rows = study.rows("table7")
    assert [row["status"] for row in rows] == ["ok", status, "ok", "ok"]
    assert rows[1]["reason"] == "it does not fit"
    assert rows[1]["loss"] is None
    assert rows[1]["samples_per_step"] == 8
    assert f"finetune is {status}: it does not fit" in rows[1]["not_measured"]
    findings = [(row["stage"], row["id"], row["rule"]) for row in study.rows("validity")]
    assert findings == [("finetune", "qwen2-1m.names.full", status)]


def test_methods_that_saw_other_samples_are_not_comparable(study: Study) -> None:
    assert study.rows("validity") == []
    _tune(study, "qwen2-1m.names.full", WHOLE_MODEL | {"sample_order_sha256": "b" * 64, "samples_per_step": 4})
    rows = study.rows("validity")
    assert [(row["severity"], row["id"], row["rule"]) for row in rows] == [
        ("error", "qwen2-1m.names", "comparable"),
        ("error", "qwen2-1m.names", "comparable"),
    ]
    assert rows[0]["message"] == "samples_per_step differs among rows that are compared: lora 8, full 4"


def test_validity_reads_the_training_behind_the_base_models(study: Study) -> None:
    parents = study.graph.table_parents("validity")
    assert {stage: len(paths) for stage, paths in parents.items()} == {"finetune": 4, "pretrain": 2}
    starved = EFFICIENCY | {"telemetry": TELEMETRY | {"status": "invalid", "reason": "the sampler starved"}}
    study.train("llama-1m", starved)
    _tune(study, "llama-1m.names.lora", efficiency=starved)
    rows = study.rows("validity")
    assert [(row["stage"], row["id"]) for row in rows] == [
        ("finetune", "llama-1m.names.lora"),
        ("pretrain", "llama-1m"),
    ]
    assert study.rows("table7")[2]["status"] == "invalid"


def test_a_damaged_record_is_refused(study: Study) -> None:
    path = _tune(study, "qwen2-1m.names.lora") / "records" / "efficiency.json"
    path.write_text(path.read_text().replace("0.25", "0.20"))
    with pytest.raises(UserError, match=r"efficiency\.json does not match the sha256 in its provenance"):
        study.rows("table7")


def test_the_table_prints_the_papers_columns(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table7.csv"
    write_csv(assemble("table7", study.graph.table_spec("table7"), study.graph.table_parents("table7")), path)
    print_table(path)
    printed = capsys.readouterr().out
    for text in ("Llama-1M", "LoRA", "0.032", "PCU: not measured. no sensor; none"):
        assert text in printed


def test_every_column_is_documented_and_described(study: Study, repository: Path) -> None:
    documented = (repository / "docs" / "tables.md").read_text()
    columns = list(study.rows("table7")[0])
    assert [column for column in columns if f"`{column}`" not in documented] == []
    assert list(DESCRIPTIONS["table7"].columns(columns)) == columns
