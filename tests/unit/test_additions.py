"""An attention variant, a method, a precision, a table, a source and a workload are added by a file and a line each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from effllm.stages.graph import Graph
from effllm.study import load_study

REPOSITORY = Path(__file__).parents[2]
STUDY = REPOSITORY / "tests" / "additions" / "study.yaml"


def run(module: str, *arguments: str) -> str:
    """What a module prints that runs with the additions."""
    command = [sys.executable, "-m", "tests.additions.register", module, *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("additions")
    run("tests.additions.measure", str(root))
    return json.loads((root / "facts.json").read_text())


def test_the_study_is_checked_planned_and_accounted_for(tmp_path: Path) -> None:
    results = ("--results", str(tmp_path / "results"))
    run("effllm.cli", "check", str(STUDY))
    targets = ("table3", "table8", "table9", "table90")
    plan = run("effllm.cli", "plan", "--study", str(STUDY), *results, "--json", *targets)
    status = run("effllm.cli", "status", "--study", str(STUDY), *results, "--json")
    assert '"table90.csv"' in status
    for node in ("pretrain/gated-0.3m", "finetune/qwen2-1m.biases.bitfit", "quantize/llama-1m.int8-rounded"):
        assert node in plan and node in status, node


def test_a_study_that_the_method_does_not_fit_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(f"extends: {STUDY}\nfinetuning: {{biases: {{models: [llama-1m]}}}}\n")
    command = [sys.executable, "-m", "tests.additions.register", "effllm.cli", "check", str(study)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode and "methods.bitfit: llama-1m has no biases to train" in result.stderr


def test_keys_of_a_new_variant_are_in_its_own_specs_alone(facts: dict[str, Any]) -> None:
    without = Graph(load_study(REPOSITORY / "config" / "tiny.yaml")).spec("pretrain", "gqa-0.3m")
    assert facts["specs"]["gqa-0.3m"] == without
    architecture = facts["specs"]["gated-0.3m"]["config"]["architecture"]
    assert architecture == without["config"]["architecture"] | {"attention": "gated", "gate_dim": 8}


def test_the_attention_trains_and_costs_what_it_says(facts: dict[str, Any]) -> None:
    attention = facts["attention"]
    built, stated = attention["parameters"]
    assert built == stated
    counted, stated = attention["flops"]
    assert counted == stated
    rows, columns, gradient = attention["gate"]
    assert (rows, columns) == (8, 64) and gradient > 0
    assert attention["saved"] == 8


def test_the_method_trains_and_costs_what_it_says(facts: dict[str, Any]) -> None:
    trained, stated = facts["method"]["trained"]
    assert trained == stated
    counted, stated = facts["method"]["flops"]
    # The gradient of the first layer's inputs is stated and not computed.
    assert counted <= stated <= 1.02 * counted


def test_the_precision_is_written_loaded_and_weighed(facts: dict[str, Any]) -> None:
    on_disk, stated = facts["precision"]["bytes"]
    assert on_disk == stated
    assert 1 < facts["precision"]["levels"] <= 255


def test_tables_have_their_rows_and_columns(facts: dict[str, Any]) -> None:
    assert [row["method"] for row in facts["tables"]["table3"]] == ["GQA", "Gated"]
    baseline, rounded = facts["tables"]["table9"]
    assert (rounded["bits"], rounded["levels"], rounded["MCR"]) == (8, "symmetric", 2.0)
    assert (baseline["bits"], baseline["levels"]) == (None, None)
    assert rounded["long_latency_ms"] == pytest.approx(12.3457)


def test_a_table_is_assembled_paired_and_decided_from(facts: dict[str, Any]) -> None:
    (row,) = facts["tables"]["table90"]
    assert (row["corpus"], row["documents_read"], row["kept"], row["status"]) == ("python-docs", 12, 0.75, "ok")
    assert facts["tables"]["table90-pairs"] == []
    assert facts["tables"]["recommended"].startswith("Take python-docs: the only row")


def test_the_source_is_read(facts: dict[str, Any]) -> None:
    assert facts["uptime"]["uptime_s"] > 0
