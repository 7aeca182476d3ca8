"""Tables from written artifacts: failed cells keep their row, empty cells say why, figures are the artifacts'."""

import json
import math
from pathlib import Path

import pytest

from effllm.assembly.assemble import assemble, write_csv
from effllm.errors import CellFailure, UserError
from effllm.tables.cells import Row, rounded
from tests.unit.tables.conftest import EFFICIENCY, FIGURES, TELEMETRY, Study


def test_figures_are_those_of_the_artifacts(study: Study) -> None:
    row = study.rows("table9")[1]
    assert (row["model"], row["precision"]) == ("Llama-1M", "int4")
    assert row["average_performance"] == 0.6, "a perplexity is in no average"
    assert row["AL_sum_ms"] == 6.0
    assert row["IT_tokens_per_s"] == 90.0
    assert row["AMU_GB"] == 0.5
    assert row["AMU_scope"] == "host process tree"
    assert row["AMU_fraction"] == 0.02
    assert row["mcr_nominal"] == 3.0, "16 / 4 bits times 0.6 / 0.8"
    assert row["mcr_measured"] == 1.875, "1000 / 400 bytes times 0.6 / 0.8"
    assert row["quantized_layers_compression"] == 3.5
    assert (row["average_performance_low"], row["average_performance_high"]) == (0.5, 0.7), "the only one's own"
    assert row["latency_ms"] == 12.3457
    assert row["batch_latency_ms"] == 12.3457
    assert row["warnings"] == "windows of 1 s"


def test_the_mean_of_benchmarks_made_from_the_same_sentences_knows_how_they_go_together(study: Study) -> None:
    def interval(swap: dict[str, list[float]], other: dict[str, list[float]] | None) -> list[float]:
        study.score("llama-1m.int4", "adjacent-swap", 0.5, "accuracy", clusters=swap)
        study.score("llama-1m.int4", "perplexity", 0.5, "accuracy", clusters=other)
        row, by_benchmark = study.rows("table9")[1], study.rows("table16")[1]
        low, high = row["average_performance_low"], row["average_performance_high"]
        assert (by_benchmark["mean"], by_benchmark["mean_low"], by_benchmark["mean_high"]) == (0.5, low, high)
        return [low, high]

    swap = {"a": [1.0, 1], "b": [0.0, 1]}
    apart = 0.1 / math.sqrt(2)
    assert interval(swap, {"c": [1.0, 1], "d": [0.0, 1]}) == pytest.approx([0.5 - apart, 0.5 + apart], abs=1e-5)
    assert interval(swap, swap) == pytest.approx([0.4, 0.6])
    assert interval(swap, {"a": [0.0, 1], "b": [1.0, 1]}) == pytest.approx([0.5, 0.5])
    assert interval(swap, None) == pytest.approx([0.5 - apart, 0.5 + apart], abs=1e-5)
    path = Path(study.graph.manifest("evaluate", "llama-1m.int4.adjacent-swap")).parent / "clusters.json"
    path.write_text(path.read_text().replace("1.0", "0.0"))
    with pytest.raises(UserError, match=r"clusters\.json does not match the sha256"):
        study.rows("table9")


def test_a_score_of_nought_enters_the_mean_with_the_interval_that_it_prints(study: Study) -> None:
    study.score("llama-1m.int4", "adjacent-swap", 0.0, "accuracy", ci95=[0.0, 0.037])
    row = study.rows("table9")[1]
    assert (row["average_performance_low"], row["average_performance_high"]) == (0.0, 0.037)
    assert (row["adjacent-swap_low"], row["adjacent-swap_high"]) == (0.0, 0.037)


def test_a_precision_is_compared_token_by_token_with_the_one_that_the_study_names(study: Study) -> None:
    divergence = {
        "reference": "bfloat16",
        "documents": 2,
        "tokens": 100,
        "kl_nats": 0.02,
        "kl_nats_stderr": 0.001,
        "kl_nats_ci95": [0.0, 0.04],
        "perplexity": 11.0,
        "reference_perplexity": 10.0,
        "nll_change_nats": 0.0953,
        "nll_change_nats_stderr": None,
        "perplexity_ratio": 1.1,
        "perplexity_ratio_ci95": None,
        "same_top_token": 0.9,
        "reasons": {"nll_change_nats_stderr": "one document", "perplexity_ratio_ci95": "one document"},
    }
    study.score("llama-1m.int4", "perplexity", 3.0, "perplexity", divergence=divergence)
    study.score("qwen2-1m.int4", "perplexity", 3.0, "perplexity", failure=CellFailure("nan", "no numbers"))
    base, row, _, failed = study.rows("table9")
    names = ("kl_nats", "kl_nats_low", "kl_nats_high", "kl_nats_stderr", "ppl_ratio", "same_top_token")
    found = [row[f"perplexity_{name}"] for name in ("divergence_from", *names)]
    assert found == ["bfloat16", 0.02, 0.0, 0.04, 0.001, 1.1, 0.9]
    assert (row["perplexity_ppl_ratio_low"], row["perplexity_nll_change_nats_stderr"]) == (None, None)
    assert "perplexity_nll_change_nats_stderr: one document" in row["not_measured"]
    assert base["perplexity_kl_nats"] is None
    assert "it is what the others are compared with" in base["not_measured"]
    assert failed["perplexity_divergence_from"] == "bfloat16"
    (group,) = [part for part in failed["not_measured"].split(" | ") if part.endswith(": evaluate is nan: no numbers")]
    assert {"perplexity_kl_nats", "perplexity_same_top_token"} <= set(group.partition(": ")[0].split(", "))
    assert "adjacent-swap_kl_nats" not in row
    assert not [pair for pair in study.rows("table9-pairs") if "kl_nats" in pair["column"]], "it is a change already"


def test_power_that_was_not_measured_is_empty_with_its_reason(study: Study) -> None:
    row = study.rows("table9")[0]
    assert row["AEC_W"] is None
    assert row["energy_J_per_token"] is None
    (group,) = [part for part in row["not_measured"].split(" | ") if part.endswith(": no sensor; none")]
    assert {"AEC_W", "energy_J_per_token", "util_nvml"} <= set(group.partition(": ")[0].split(", "))


def test_an_evaluation_that_others_disturbed_makes_its_row_invalid(study: Study) -> None:
    telemetry = TELEMETRY | {"other_cpu_fraction": 0.481, "steal_fraction": 0.0}
    study.score("llama-1m.int4", "perplexity", 2.0, "perplexity", telemetry=telemetry)
    first, second = study.rows("table9")[:2]
    assert first["status"] == "ok"
    assert second["status"] == "invalid"
    assert second["reason"].startswith("disturbed: evaluate perplexity: other processes took 48.1%")
    scores = study.rows("table16")[1]
    assert scores["status"] == "ok" and scores["perplexity_latency_ms"] is None
    assert "perplexity_latency_ms: disturbed: " in scores["not_measured"]


def test_the_row_says_which_generation_settings_were_ignored(study: Study) -> None:
    ignored = {"num_beams": 2, "do_sample": True}
    study.score("llama-1m.int4", "perplexity", 2.0, "perplexity", ignored_generation_settings=ignored)
    row = study.rows("table9")[1]
    assert row["status"] == "ok"
    assert "generation settings in the model's files were ignored: num_beams 2, do_sample True" in row["warnings"]


def test_the_row_says_which_items_are_in_the_training_text(study: Study) -> None:
    study.compare("adjacent-swap.python-docs", covered=3)
    message = (
        "3 of 20 items of adjacent-swap have at least 80% of their word 5-grams in the training text of python-docs"
    )
    row, scores = study.rows("table9")[1], study.rows("table16")[1]
    assert (row["status"], row["warnings"].split("; ")[-1]) == ("ok", message)
    assert (scores["adjacent-swap_items_in_training"], scores["perplexity_items_in_training"]) == (3, 0)
    (found,) = (row for row in study.rows("validity") if row["stage"] == "overlap")
    assert (found["id"], found["severity"], found["message"]) == ("adjacent-swap.python-docs", "warning", message)


def test_a_failed_cell_keeps_its_row_with_status_and_reason(study: Study) -> None:
    study.score("llama-1m.int4", "adjacent-swap", 0.0, "accuracy", CellFailure("oom", "too large for the device"))
    ok, failed = study.rows("table9")[:2]
    assert ok["status"] == "ok"
    assert failed["status"] == "oom"
    assert failed["reason"] == "evaluate: too large for the device"
    assert failed["average_performance"] is None
    assert failed["MCR"] is None
    assert failed["adjacent-swap_score"] is None
    assert failed["perplexity_score"] == 2.0
    assert failed["IT_tokens_per_s"] == 90.0
    by_benchmark = study.rows("table16")[1]
    assert by_benchmark["status"] == "oom"
    assert by_benchmark["Adjacent swap"] is None
    assert by_benchmark["mean"] is None


def test_validity_lists_failures_and_suspicions_errors_first(study: Study) -> None:
    rows = study.rows("validity")
    assert {row["rule"] for row in rows} == {
        "single/short_windows",
        "batch/short_windows",
        # 25 generations of 8 tokens are 200 for the single workload, but 25 x 4 x 2 for the batch.
        "quantized_score",
    }
    study.score("llama-1m.int4", "adjacent-swap", 0.0, "accuracy", CellFailure("oom", "too large for the device"))
    study.score("qwen2-1m.int4", "adjacent-swap", 1.2, "accuracy")
    rows = study.rows("validity")
    assert [(row["severity"], row["id"], row["rule"]) for row in rows[:2]] == [
        ("error", "llama-1m.int4.adjacent-swap", "oom"),
        ("error", "qwen2-1m.int4.adjacent-swap", "score"),
    ]
    assert all(row["severity"] == "warning" for row in rows[2:])


def test_validity_looks_at_training_too(study: Study) -> None:
    starved = {**TELEMETRY, "status": "invalid", "reason": "the sampler starved"}
    study.train("llama-1m", EFFICIENCY | {"telemetry": starved})
    study.train("qwen2-1m", EFFICIENCY | {"telemetry": None, "reasons": {"telemetry": "too few steps"}})
    found = [
        (row["severity"], row["id"], row["message"]) for row in study.rows("validity") if row["stage"] == "pretrain"
    ]
    assert found == [
        ("error", "llama-1m", "the measurement is invalid: the sampler starved"),
        ("warning", "qwen2-1m", "not measured: too few steps"),
    ]


def test_validity_notices_tokens_that_are_missing(study: Study) -> None:
    figures = FIGURES | {"generated_tokens": 199}
    path = Path(study.graph.manifest("profile", "llama-1m.int4")).parent
    profile = json.loads((path / "profile.json").read_text())
    profile["workloads"]["single"]["figures"] = figures
    study.write("profile", "llama-1m.int4", "profile.json", profile)
    messages = [row["message"] for row in study.rows("validity") if row["rule"] == "single/token_count"]
    assert messages == ["199 tokens were produced where 200 were asked for"]


def test_a_workload_that_could_not_run_is_empty_alone_and_said_everywhere(study: Study) -> None:
    reason = "CUDA graphs need an NVIDIA GPU, and this ran on cpu"
    absent = dict.fromkeys(("energy", "figures", "telemetry", "utilization"))
    content = {**absent, "findings": [], "reason": reason, "status": "unsupported"}
    directory = Path(study.graph.manifest("profile", "llama-1m.int4")).parent
    complete = json.loads((directory / "profile.json").read_text())
    workloads = complete["workloads"]
    study.write("profile", "llama-1m.int4", "profile.json", complete | {"workloads": workloads | {"batch": content}})
    row = next(r for r in study.rows("table9") if r["model"] == "Llama-1M" and r["precision"] == "int4")
    assert row["status"] == "ok" and row["latency_ms"] is not None
    assert row["batch_latency_ms"] is None and row["batch_status"] == "unsupported"
    assert f"batch_decode_mbu: workload batch is unsupported: {reason}" in row["not_measured"]
    found = [row for row in study.rows("validity") if row["rule"] == "batch/unsupported"]
    assert [(row["severity"], row["message"]) for row in found] == [("error", reason)]
    study.write("profile", "llama-1m.int4", "profile.json", complete | {"workloads": workloads | {"single": content}})
    row = next(r for r in study.rows("table9") if r["model"] == "Llama-1M" and r["precision"] == "int4")
    assert (row["status"], row["reason"]) == ("unsupported", reason)
    assert row["latency_ms"] is None and row["batch_status"] == "ok"


def test_validity_of_a_sound_study_is_an_empty_table_with_its_columns(study: Study) -> None:
    for model in study.graph.study.models:
        study.score(f"{model}.int4", "adjacent-swap", 0.8, "accuracy")
        for precision in ("bfloat16", "int4"):
            path = Path(study.graph.manifest("profile", f"{model}.{precision}")).parent
            profile = json.loads((path / "profile.json").read_text())
            for workload in profile["workloads"].values():
                workload["findings"] = []
            study.write("profile", f"{model}.{precision}", "profile.json", profile)
    frame = assemble("validity", study.graph.table_spec("validity"), study.graph.table_parents("validity"))
    assert frame.columns == ["stage", "id", "rule", "severity", "message"]
    assert frame.height == 0


def test_an_altered_result_is_refused(study: Study) -> None:
    path = Path(study.graph.manifest("profile", "llama-1m.int4")).parent / "profile.json"
    path.write_text(path.read_text().replace("90.0", "99.0"))
    with pytest.raises(UserError, match=r"profile\.json does not match the sha256"):
        study.rows("table9")


def test_an_empty_cell_without_a_reason_cannot_be_written() -> None:
    row = Row()
    with pytest.raises(ValueError, match="AEC_W is empty without a reason"):
        row.set("AEC_W", None)
    with pytest.raises(ValueError, match="AEC_W is nan"):
        row.set("AEC_W", float("nan"))


def test_floats_are_rounded_to_six_digits() -> None:
    assert rounded(123456.789) == 123457.0
    assert rounded(0.000123456789) == 0.000123457
    assert rounded(3) == 3


def test_the_file_is_csv_with_quoted_text(study: Study, tmp_path: Path) -> None:
    import csv

    frame = assemble("table9", study.graph.table_spec("table9"), study.graph.table_parents("table9"))
    write_csv(frame, tmp_path / "table9.csv")
    with open(tmp_path / "table9.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert rows[0]["AEC_W"] == ""


def test_every_column_is_documented(study: Study, repository: Path) -> None:
    documented = (repository / "docs" / "tables.md").read_text()
    for column in study.rows("table9")[0]:
        name = column
        for placeholder, ids in (("benchmark", study.graph.study.benchmarks), ("workload", ["batch"])):
            prefix = next((id for id in ids if column.startswith(f"{id}_")), None)
            name = column.replace(prefix, f"<{placeholder}>") if prefix else name
        assert f"`{name}`" in documented, f"docs/tables.md does not explain {name}"
