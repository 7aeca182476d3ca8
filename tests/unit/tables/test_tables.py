"""Tables from written artifacts: failed cells keep their row, empty cells say why, figures are the artifacts'."""

import json
from pathlib import Path
from typing import Any

import pytest

from effllm.artifact import publish
from effllm.errors import CellFailure, UserError
from effllm.study import Graph, parse_study
from effllm.tables.assemble import assemble, write_csv
from effllm.tables.cells import Row, rounded

NO_SENSOR = ("energy_j", "energy_scope", "energy_source", "power_avg_w", "power_peak_w", "util_nvml")
TELEMETRY = {
    **dict.fromkeys(NO_SENSOR),
    "duration_s": 2.5,
    "memory_device_avg_gb": None,
    "memory_host_avg_gb": 0.5,
    "memory_host_peak_gb": 0.6,
    "memory_host_total_gb": 25.0,
    "memory_total_gb": None,
    "reason": None,
    "reasons": {**dict.fromkeys(NO_SENSOR, "no sensor; none"), "memory_device_avg_gb": "a CPU"},
    "status": "ok",
    "util_cpu": 0.9,
    "windows": 2,
}
ENERGY = ("energy_j_per_token", "energy_above_idle_j_per_token", "decode_energy_j_per_token")
UTILIZATION = ("prefill_mfu", "decode_mbu")
SHORT = {"rule": "short_windows", "severity": "warning", "message": "windows of 1 s"}
FIGURES = {
    "decode_tokens_per_s": 100.0,
    "first_token_ms_p50": 5.0,
    "first_token_ms_p95": 6.0,
    "generated_tokens": 200,
    "generations": 25,
    "latency_ms": 12.3456789,
    "latency_ms_ci95": [12.0, 13.0],
    "prefill_tokens_per_s": 1000.0,
    "throughput_tokens_per_s": 90.0,
    "throughput_tokens_per_s_ci95": [88.0, 92.0],
    "token_ms_p50": 1.0,
    "token_ms_p95": 2.0,
}


class Study:
    """Artifacts of a table written by hand, so that every figure of the table is known."""

    def __init__(self, study: dict[str, Any], root: Path):
        self.graph = Graph(parse_study(study, "test"), str(root / "results"))
        self.root = root
        self.count = 0

    def write(
        self, stage: str, id: str, name: str, content: dict[str, Any], failure: CellFailure | None = None
    ) -> None:
        self.count += 1
        staging = self.root / f"staging{self.count}"
        staging.mkdir()
        (staging / name).write_text(json.dumps(content))
        destination = Path(self.graph.manifest(stage, id)).parent
        spec = self.graph.spec(stage, id)
        publish(staging, destination, stage=stage, id=id, spec=spec, parents={}, provenance={}, failure=failure)

    def train(self, run: str, telemetry: dict[str, Any] | None) -> None:
        """A training run whose window was measured, or was too short to be."""
        self.count += 1
        staging = self.root / f"staging{self.count}"
        (staging / "records").mkdir(parents=True)
        (staging / "training.json").write_text("{}")
        efficiency = {"device": {}, "reason": None if telemetry else "too few steps", "telemetry": telemetry}
        (staging / "records" / "efficiency.json").write_text(json.dumps(efficiency))
        destination = Path(self.graph.manifest("pretrain", run)).parent
        spec = self.graph.spec("pretrain", run)
        publish(staging, destination, stage="pretrain", id=run, spec=spec, parents={}, provenance={})

    def complete(self) -> None:
        for run in self.graph.study.pretraining:
            self.train(run, TELEMETRY)
        for model in self.graph.study.models:
            for precision, size in (("bfloat16", 1000), ("int4", 400)):
                variant = f"{model}.{precision}"
                packed = (100, 350) if precision == "int4" else (None, None)
                weights = {
                    "bytes": size,
                    "quantized_layers": 1,
                    "quantized_layers_bytes": packed[0],
                    "quantized_layers_bytes_16_bit": packed[1],
                }
                self.write("quantize", variant, "quantization.json", {"weights": weights})
                workload = {
                    "energy": {**dict.fromkeys(ENERGY), "reasons": dict.fromkeys(ENERGY, "no sensor; none")},
                    "figures": FIGURES,
                    "findings": [SHORT],
                    "reason": None,
                    "status": "ok",
                    "telemetry": {"generate": TELEMETRY, "prefill": TELEMETRY},
                    "utilization": {**dict.fromkeys(UTILIZATION), "reasons": dict.fromkeys(UTILIZATION, "a CPU")},
                }
                profile = {
                    "device": {"name": "a CPU"},
                    "protocol": self.graph.study.inference.plain(),
                    "threads": 2,
                    "workloads": {"single": workload, "batch": workload},
                }
                self.write("profile", variant, "profile.json", profile)
                self.score(variant, "adjacent-swap", 0.8 if precision == "bfloat16" else 0.6, "accuracy")
                self.score(variant, "perplexity", 2.0, "perplexity")

    def score(self, variant: str, benchmark: str, score: float, role: str, failure: CellFailure | None = None) -> None:
        content = {
            "chance_level": 0.5,
            "ci95": [score - 0.1, score + 0.1],
            "cost": {"latency_mean_ms": 3.0},
            "telemetry": {"status": "ok", "reason": None},
            "items": 20,
            "metric": "acc",
            "role": role,
            "score": score,
            "stderr": 0.05,
        }
        self.write("evaluate", f"{variant}.{benchmark}", "evaluation.json", content, failure)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return assemble(name, self.graph.table_spec(name), self.graph.table_parents(name)).to_dicts()


@pytest.fixture
def study(micro: dict[str, Any], tmp_path: Path) -> Study:
    study = Study(micro, tmp_path)
    study.complete()
    return study


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
    assert row["average_performance_low"] == pytest.approx(0.6 - 1.96 * 0.05)
    assert row["latency_ms"] == 12.3457
    assert row["batch_latency_ms"] == 12.3457
    assert row["warnings"] == "windows of 1 s"


def test_power_that_was_not_measured_is_empty_with_its_reason(study: Study) -> None:
    row = study.rows("table9")[0]
    assert row["AEC_W"] is None
    assert row["energy_J_per_token"] is None
    (group,) = [part for part in row["not_measured"].split(" | ") if part.endswith(": no sensor; none")]
    assert {"AEC_W", "energy_J_per_token", "util_nvml"} <= set(group.partition(": ")[0].split(", "))


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
    study.train("llama-1m", {**TELEMETRY, "status": "invalid", "reason": "the sampler starved"})
    study.train("qwen2-1m", None)
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
