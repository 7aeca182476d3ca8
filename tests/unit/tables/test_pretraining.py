"""Tables 3 to 6 from written artifacts, their cells against numbers worked out by hand."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from effllm.assembly.assemble import assemble, write_csv
from effllm.errors import CellFailure, UserError
from effllm.tables.descriptions import DESCRIPTIONS
from effllm.tables.show import print_table
from tests.unit.tables.conftest import DEVICE, EFFICIENCY, QUALITY, TELEMETRY, Study

# Two GPUs, of which the first is metered: 10 steps of 0.25 s at 200 W.
ON_GPU = {
    **TELEMETRY,
    "energy_j": 500.0,
    "energy_scope": "gpu",
    "energy_source": "nvml: counter",
    "memory_device_avg_gb": 10.0,
    "memory_device_peak_gb": 12.0,
    "memory_total_gb": 80.0,
    "power_avg_w": 200.0,
    "power_peak_w": 250.0,
    "reasons": {},
    "util_nvml": 0.9,
}
GPU_EFFICIENCY = EFFICIENCY | {
    "device": DEVICE | {"device": "cuda:0", "kind": "cuda", "name": "a GPU"},
    "mfu": 0.4,
    "reasons": {},
    "telemetry": ON_GPU,
    "world_size": 2,
}


@pytest.fixture
def study(micro: dict[str, Any], tmp_path: Path) -> Study:
    """Table 3 with a row of one run and a row of two seeds, nothing trained yet."""
    runs = micro["pretraining"]
    runs["llama-1m-again"] = copy.deepcopy(runs["llama-1m"]) | {"seed": 1}
    micro["tables"] = {
        "table3": {
            "rows": [
                {"method": "GQA", "parameters": "1M", "runs": ["llama-1m", "llama-1m-again"]},
                {"method": "MHA", "parameters": "1M", "runs": ["qwen2-1m"]},
            ]
        }
    }
    return Study(micro, tmp_path)


def _train_all(study: Study, efficiency: dict[str, Any] = EFFICIENCY) -> None:
    for run in ("llama-1m", "llama-1m-again", "qwen2-1m"):
        study.train(run, efficiency)


def test_the_papers_columns_come_first_in_its_order(study: Study) -> None:
    _train_all(study)
    columns = list(study.rows("table3")[0])
    assert columns[:10] == [
        "method",
        "parameters",
        "micro_batch",
        "context",
        "PPL",
        "AMU_GB",
        "AL_s_per_iter",
        "TT_tokens_per_param_s",
        "AEC_W",
        "GPU_hours",
    ]
    assert columns[-3:] == ["status", "reason", "not_measured"]


def test_figures_of_a_run_on_two_gpus(study: Study) -> None:
    _train_all(study, GPU_EFFICIENCY)
    row = study.rows("table3")[1]
    assert (row["method"], row["parameters"], row["micro_batch"], row["context"]) == ("MHA", "1M", 4, 64)
    assert row["PPL"] == pytest.approx(7.38906, rel=1e-5)
    assert row["PPL_low"] == pytest.approx(7.38906 / 1.216526, rel=1e-5), "exp(0.196) = 1.216526"
    assert row["PPL_high"] == pytest.approx(7.38906 * 1.216526, rel=1e-5)
    assert row["AMU_GB"] == 10.0
    assert row["AMU_scope"] == "device of rank 0"
    assert row["AMU_fraction"] == 0.125
    assert (row["memory_peak_GB"], row["host_memory_peak_GB"]) == (12.0, 0.6)
    assert row["AL_s_per_iter"] == 0.25
    assert (row["AL_low"], row["AL_high"]) == (0.24, 0.26)
    assert row["tokens_per_s"] == 1024.0, "4 x 64 tokens in 0.25 s"
    assert row["TT_tokens_per_param_s"] == 1.024, "of 1000 parameters"
    assert row["AEC_W"] == 200.0
    assert row["GPU_hours"] == pytest.approx(12 * 0.25 * 2 / 3600, rel=1e-5)
    assert row["training_hours"] == pytest.approx(12 * 0.25 / 3600, rel=1e-5)
    assert row["energy_J_per_token"] == pytest.approx(500 / 1280, rel=1e-5), "rank 0 made half of 10 x 256 tokens"
    assert row["mfu"] == 0.4
    assert (row["runs"], row["seeds"], row["world_size"]) == ("qwen2-1m", "0", 2)
    assert row["status"] == "ok"


def test_throughput_gpu_hours_and_tokens_are_consistent(study: Study) -> None:
    """The published TT is some 50 times what the published GPU hours imply; ours must agree with ours."""
    _train_all(study, GPU_EFFICIENCY)
    row = study.rows("table3")[1]
    seconds = row["GPU_hours"] * 3600 / row["world_size"]
    assert row["TT_tokens_per_param_s"] * row["parameters_total"] * seconds == pytest.approx(
        row["tokens_seen"], rel=1e-5
    )


def test_on_a_cpu_what_has_no_instrument_is_empty_with_its_reason(study: Study) -> None:
    _train_all(study)
    row = study.rows("table3")[1]
    for column in ("AEC_W", "GPU_hours", "mfu", "util_nvml", "energy_J_per_token"):
        assert row[column] is None
    assert "AEC_W, util_nvml, power_peak_w, energy_source, energy_scope, energy_J_per_token: no sensor; none" in (
        row["not_measured"].split(" | ")
    )
    assert "GPU_hours: trained on a CPU" in row["not_measured"].split(" | ")
    assert row["AMU_GB"] == 0.5
    assert row["AMU_scope"] == "host process tree"
    assert row["status"] == "ok"


def test_several_seeds_are_one_row_over_all_their_steps(study: Study) -> None:
    _train_all(study, GPU_EFFICIENCY)
    longer = GPU_EFFICIENCY | {
        "latency_s_per_iteration": 0.75,
        "steps": 10,
        "telemetry": ON_GPU
        | {"duration_s": 7.5, "energy_j": 2250.0, "memory_device_avg_gb": 14.0, "power_avg_w": 300.0},
        "tokens_per_s": 4 * 64 / 0.75,
    }
    quality = QUALITY | {"held_out_loss": 3.0, "held_out_loss_stderr": 0.3}
    study.train("llama-1m-again", longer, quality)
    row = study.rows("table3")[0]
    assert row["seeds"] == "0, 1"
    assert row["PPL"] == pytest.approx(math.exp(2.5), rel=1e-5)
    assert row["PPL_high"] == pytest.approx(math.exp(2.5 + 1.96 * 0.2), rel=1e-5), (
        "errors of one text do not average out"
    )
    # Student's t for one degree of freedom is 12.7062; the standard error of 2 and 3 is 0.5.
    assert row["PPL_seeds_high"] == pytest.approx(math.exp(2.5 + 12.7062 * 0.5), rel=1e-4)
    assert row["AL_s_per_iter"] == 0.5, "10 s over 20 steps"
    assert row["AL_low"] == pytest.approx(0.5 - 12.7062 * 0.25, rel=1e-4)
    assert row["TT_tokens_per_param_s"] == 0.512, "5120 tokens in 10 s"
    assert row["AMU_GB"] == 13.0, "10 GB for 2.5 s and 14 GB for 7.5 s"
    assert row["AEC_W"] == 275.0
    assert row["energy_J_per_token"] == pytest.approx(2750 / 2560, rel=1e-5)
    assert row["GPU_hours"] == pytest.approx(12 * 0.5 * 2 / 3600, rel=1e-5), "of one run"
    assert row["steps_measured"] == 20


@pytest.mark.parametrize("status", ["oom", "nan", "unsupported"])
def test_a_failed_run_keeps_its_row(study: Study, status: Any) -> None:
    _train_all(study)
    study.train("llama-1m-again", EFFICIENCY, failure=CellFailure(status, "the loss is lost"))
    row, other = study.rows("table3")
    assert row["status"] == status
    assert row["reason"] == "llama-1m-again: the loss is lost"
    assert row["PPL"] is None, "the seed that went well says nothing of both"
    assert row["AL_s_per_iter"] is None
    assert row["micro_batch"] == 4
    assert f"llama-1m-again: pretrain is {status}: the loss is lost" in row["not_measured"]
    assert other["status"] == "ok"


def test_a_run_too_short_to_measure_has_its_quality(study: Study) -> None:
    _train_all(study)
    empty = ["latency_s_per_iteration", "latency_s_per_iteration_ci95", "tokens_per_s", "mfu", "telemetry"]
    unmeasured = dict.fromkeys(empty) | {"steps": 0, "reasons": dict.fromkeys(empty, "fewer than 4 steps")}
    study.train("qwen2-1m", EFFICIENCY | unmeasured)
    row = study.rows("table3")[1]
    assert row["PPL"] == pytest.approx(7.38906)
    assert row["AL_s_per_iter"] is None
    assert row["TT_tokens_per_param_s"] is None
    assert row["warnings"] == "not measured: fewer than 4 steps"
    assert row["status"] == "ok"


def test_a_run_on_data_without_meaning_has_its_efficiency(study: Study) -> None:
    _train_all(study)
    scores = [
        "held_out_bits_per_byte",
        "held_out_loss",
        "held_out_loss_stderr",
        "held_out_perplexity",
        "held_out_tokens",
    ]
    study.train("qwen2-1m", EFFICIENCY, QUALITY | dict.fromkeys(scores) | {"reasons": dict.fromkeys(scores, "noise")})
    row = study.rows("table3")[1]
    assert (row["PPL"], row["PPL_low"], row["held_out_loss"]) == (None, None, None)
    assert row["AL_s_per_iter"] == 0.25
    assert "noise" in row["not_measured"]
    assert row["status"] == "ok"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens_per_s": 50 * 1024.0}, "throughput is 51200 tokens/s, but 2560 tokens in 2.5 s are 1024"),
        ({"latency_s_per_iteration": 0.005}, "a step takes 0.005 s, but 10 steps in 2.5 s are 0.25 s each"),
        ({"mfu": 0.95}, "mfu is 0.95"),
    ],
)
def test_figures_that_contradict_each_other_make_the_row_invalid(study: Study, change: Any, reason: str) -> None:
    _train_all(study)
    study.train("qwen2-1m", EFFICIENCY | change)
    row = study.rows("table3")[1]
    assert row["status"] == "invalid"
    assert reason in row["reason"]
    findings = study.rows("validity")
    assert [(found["stage"], found["id"], found["severity"]) for found in findings] == [
        ("pretrain", "qwen2-1m", "error")
    ]


def test_a_training_that_others_disturbed_says_so_first(study: Study) -> None:
    _train_all(study)
    busy = TELEMETRY | {"other_cpu_fraction": 0.3, "steal_fraction": 0.2, "idle_cpu_fraction": 0.0}
    study.train("qwen2-1m", EFFICIENCY | {"mfu": 0.95, "telemetry": busy})
    study.train("llama-1m-again", EFFICIENCY | {"telemetry": busy})
    several, one = study.rows("table3")[:2]
    assert one["status"] == several["status"] == "invalid"
    assert one["reason"].startswith(
        "disturbed: other processes took 30.0% and the hypervisor's other guests took 20.0%"
    )
    assert several["reason"].startswith("disturbed: llama-1m-again: other processes took 30.0%")


def test_steps_that_take_longer_than_the_whole_job_are_invalid(study: Study) -> None:
    _train_all(study)
    slow = {"latency_s_per_iteration": 2.5, "telemetry": TELEMETRY | {"duration_s": 25.0}, "tokens_per_s": 102.4}
    study.train("qwen2-1m", EFFICIENCY | slow)
    assert study.rows("table3")[1]["reason"] == "12 steps of 2.5 s are 30 s, but the whole job took 20 s"
    # A resumed run took its other steps in another job.
    study.train("qwen2-1m", EFFICIENCY | slow | {"resumed_at_step": 8})
    row = study.rows("table3")[1]
    assert row["status"] == "ok"
    assert row["warnings"] == "resumed at step 8: efficiency is that of the steps after it"


def test_a_mixture_says_how_many_experts_it_chooses(micro: dict[str, Any], tmp_path: Path) -> None:
    micro["pretraining"]["moe"] = copy.deepcopy(micro["pretraining"]["llama-1m"]) | {
        "architecture": {
            "model_type": "effllm",
            "feed_forward": "moe",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "num_experts_per_tok": 3,
        }
    }
    rows = [
        {"method": name, "parameters": "1M", "runs": [run]} for name, run in (("Dense", "llama-1m"), ("MoE", "moe"))
    ]
    micro["tables"] = {"table5": {"rows": rows}}
    study = Study(micro, tmp_path)
    for run in ("llama-1m", "moe"):
        study.train(run, EFFICIENCY)
    dense, mixture = study.rows("table5")
    assert list(dense)[2] == "top_k"
    assert (dense["top_k"], mixture["top_k"]) == (None, 3)
    assert "top_k: no mixture of experts" in dense["not_measured"]


def test_a_damaged_record_is_refused(study: Study) -> None:
    _train_all(study)
    path = Path(study.graph.manifest("pretrain", "qwen2-1m")).parent / "records" / "efficiency.json"
    path.write_text(path.read_text().replace("1024.0", "9024.0"))
    with pytest.raises(
        UserError, match=r"records/efficiency\.json does not match the sha256 in its provenance; .*delete"
    ):
        study.rows("table3")
    path.unlink()
    with pytest.raises(UserError, match=r"efficiency\.json is listed in its provenance but does not exist"):
        study.rows("table3")


@pytest.mark.parametrize(("name", "key"), [("records/efficiency.json", "mfu"), ("training.json", "held_out_loss")])
def test_a_key_that_an_artifact_lacks_is_an_error_with_a_remedy(study: Study, name: str, key: str) -> None:
    _train_all(study)
    efficiency, quality = dict(EFFICIENCY), dict(QUALITY)
    (efficiency if key == "mfu" else quality).pop(key)
    study.train("qwen2-1m", efficiency, quality)
    with pytest.raises(UserError, match=rf"{name} has no '{key}': .*delete .*qwen2-1m and run again"):
        study.rows("table3")


def test_a_row_of_another_table_reads_no_run_twice(study: Study) -> None:
    parents = study.graph.table_parents("validity")
    assert list(parents) == ["pretrain"]
    assert len(parents["pretrain"]) == len(set(parents["pretrain"])) == 3


def test_the_table_prints_the_papers_columns(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _train_all(study)
    path = tmp_path / "table3.csv"
    write_csv(assemble("table3", study.graph.table_spec("table3"), study.graph.table_parents("table3")), path)
    print_table(path)
    printed = capsys.readouterr().out
    for text in ("GQA", "AL s per", "0.25", "AEC_W: not measured. no sensor; none", "GPU_hours: not measured."):
        assert text in printed


def test_every_column_is_documented_and_described(study: Study, repository: Path) -> None:
    _train_all(study)
    documented = (repository / "docs" / "tables.md").read_text()
    columns = list(study.rows("table3")[0])
    assert [column for column in columns if f"`{column}`" not in documented] == []
    assert list(DESCRIPTIONS["table3"].columns(columns)) == columns


def test_a_table_of_orders_says_which_each_row_had(study: Study, micro: dict[str, Any], tmp_path: Path) -> None:
    _train_all(study)
    assert "order" not in study.rows("table3")[0]
    micro["orders"]["short"] = micro["orders"]["compression"] | {"sequence_length": 64}
    pacing = {"start": 0.1, "full_at": 0.5, "exponent": 2.0}
    micro["pretraining"]["qwen2-1m"]["order"] = {"by": "short", "share": 0.5, "segments": 3, "pacing": pacing}
    micro["tables"]["curriculum"] = micro["tables"].pop("table3")
    ordered = Study(micro, tmp_path / "ordered")
    _train_all(ordered)
    rows = ordered.rows("curriculum")
    assert [row["order"] for row in rows] == [
        "random",
        "short, easy first, from 0.1 of it to all after 0.5 of the steps by exponent 2, in 3 segments, for 0.5 of the "
        "steps",
    ]
    assert list(DESCRIPTIONS["curriculum"].columns(list(rows[0]))) == list(rows[0])


def test_a_row_names_its_card_without_giving_it_away_and_its_libraries(study: Study) -> None:
    cards = [f"GPU-{digit * 8}-0000-0000-0000-000000000001" for digit in "aba"]
    for run, card in zip(("llama-1m", "llama-1m-again", "qwen2-1m"), cards, strict=True):
        study.train(run, GPU_EFFICIENCY | {"device": GPU_EFFICIENCY["device"] | {"uuid": card}})
    two, one = study.rows("table3")
    first, second = two["device_id"].split("; ")
    assert first == one["device_id"] != second
    assert "aaaa" not in first and len(first) == 12
    assert one["software"] == "torch 2.11.0, transformers 5.23.0"


def test_a_processor_has_no_card(study: Study) -> None:
    _train_all(study)
    assert study.rows("table3")[0]["device_id"] is None
    assert "device_id: the device has no UUID" in study.rows("table3")[0]["not_measured"]
