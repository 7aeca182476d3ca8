"""What reruns after an edit is exactly what the edit concerns; planned by Snakemake over finished results."""

import copy
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.conftest import Workdir

TABLES = {"table9.csv", "table16.csv", "validity.csv"}
LLAMA_INT4 = {
    "quantize/llama-1m.int4",
    "profile/llama-1m.int4",
    "evaluate/llama-1m.int4.adjacent-swap",
    "evaluate/llama-1m.int4.perplexity",
}


def _downstream_of_llama() -> set[str]:
    variants = ("llama-1m.bfloat16", "llama-1m.int4")
    nodes = {f"{stage}/{variant}" for stage in ("quantize", "profile") for variant in variants}
    return nodes | {f"evaluate/{variant}.{b}" for variant in variants for b in ("adjacent-swap", "perplexity")}


def test_a_second_run_executes_nothing(finished: Workdir) -> None:
    assert finished.planned() == set()
    assert "Nothing to be done" in (output := finished.snakemake("all")).stdout + output.stderr


def test_one_models_quantization_setting_reruns_its_nodes_and_the_tables(edited: Callable[..., set[str]]) -> None:
    def edit(study: dict[str, Any]) -> None:
        study["models"]["llama-1m"]["precisions"] = {"int4": {"damping": 0.1}}

    assert edited(edit) == LLAMA_INT4 | TABLES


def test_adding_a_model_adds_its_nodes_only(edited: Callable[..., set[str]]) -> None:
    def edit(study: dict[str, Any]) -> None:
        study["models"]["again"] = {"source": {"kind": "pretrained", "run": "llama-1m"}}
        for table in study["tables"].values():
            table["models"] = [*table["models"], "again"]

    assert edited(edit) == {node.replace("llama-1m", "again") for node in _downstream_of_llama()} | TABLES


def test_adding_a_benchmark_adds_its_nodes_only(edited: Callable[..., set[str]]) -> None:
    def edit(study: dict[str, Any]) -> None:
        study["benchmarks"]["word-order"] = {
            "kind": "held_out",
            "corpus": "python-docs",
            "task": "word_order",
            "items": 10,
        }
        for table in study["tables"].values():
            table["benchmarks"] = [*table["benchmarks"], "word-order"]

    variants = ("llama-1m.bfloat16", "llama-1m.int4", "qwen2-1m.bfloat16", "qwen2-1m.int4")
    added = {f"evaluate/{variant}.word-order" for variant in variants}
    assert edited(edit) == {"benchmark/word-order"} | added | TABLES


def test_swapping_two_numbers_reruns_the_run_and_what_follows(edited: Callable[..., set[str]]) -> None:
    def edit(study: dict[str, Any]) -> None:
        optimizer = study["pretraining"]["llama-1m"]["optimizer"]
        swapped = {"learning_rate": optimizer["weight_decay"], "weight_decay": optimizer["learning_rate"]}
        optimizer |= swapped

    assert edited(edit) == {"pretrain/llama-1m"} | _downstream_of_llama() | TABLES


def test_a_label_rebuilds_the_tables_only(edited: Callable[..., set[str]]) -> None:
    def edit(study: dict[str, Any]) -> None:
        study["models"]["llama-1m"]["label"] = "Another"

    assert edited(edit) == TABLES


@pytest.mark.parametrize("what", ["key order", "description", "default written out"])
def test_edits_that_change_no_result_rerun_nothing(edited: Callable[..., set[str]], what: str) -> None:
    def edit(study: dict[str, Any]) -> None:
        if what == "key order":
            run = study["pretraining"]["llama-1m"]
            study["pretraining"]["llama-1m"] = {key: run[key] for key in reversed(run)}
        elif what == "description":
            study["description"] = "Another sentence."
        else:
            study["corpora"]["python-docs"]["seed"] = 0

    assert edited(edit) == set()


def test_comments_threads_memory_and_file_times_rerun_nothing(finished: Workdir) -> None:
    path = finished.path / "study.yaml"
    path.write_text("# A comment.\n" + path.read_text())
    for manifest in (finished.path / "results").glob("*/*/manifest.json"):
        os.utime(manifest)
    resources = ["--set-threads", "evaluate=2", "pretrain=2", "--set-resources", "evaluate:mem_mb=1234"]
    output = finished.snakemake("all", options=["--summary", *resources]).stdout
    assert "update pending" not in output
    assert "no update" in output


def test_a_deleted_result_is_rebuilt_and_nothing_before_it(finished: Workdir) -> None:
    (finished.path / "results" / "table9.csv").unlink()
    assert finished.planned() == {"table9.csv"}
    finished.snakemake("results/table9.csv")
    assert finished.planned() == set()


def test_retraining_to_the_same_bytes_reruns_nothing_after_it(finished: Workdir) -> None:
    trained = finished.path / "results" / "pretrain" / "llama-1m"
    digest = (trained / "manifest.json").read_text()
    shutil.rmtree(trained)
    finished.snakemake("results/pretrain/llama-1m/manifest.json")
    assert (trained / "manifest.json").read_text() == digest
    assert finished.planned() == set()


def test_a_rerun_that_changes_nothing_stops_where_nothing_changed(finished: Workdir) -> None:
    """Snakemake runs everything after a forced node; each of them sees its inputs unchanged and stands."""
    payloads = [path for path in (finished.path / "results").glob("[!.]*/*/*.json") if path.name != "manifest.json"]
    before = {path: path.stat().st_mtime_ns for path in payloads}
    output = finished.snakemake("results/profile/llama-1m.int4/manifest.json", options=["--forcerun", "quantize"])
    assert "Profiling llama-1m.int4" in output.stdout + output.stderr
    assert {path: path.stat().st_mtime_ns for path in payloads} == before
    assert finished.planned() <= TABLES


def test_the_edited_setting_is_really_applied(finished: Workdir) -> None:
    """Run, not only plan, the edit of one model's setting; the other model's artifacts stay untouched."""
    original = copy.deepcopy(finished.study)
    finished.study["models"]["llama-1m"]["precisions"] = {"int4": {"group_size": 64}}
    finished.write()
    started = time.time()
    finished.snakemake("all")
    manifests = (finished.path / "results").glob("*/*/manifest.json")
    rebuilt = {f"{p.parts[-3]}/{p.parts[-2]}" for p in manifests if p.stat().st_mtime > started}
    assert rebuilt == LLAMA_INT4
    text = Path(finished.path / "results" / "table9.csv").read_text()
    assert ",64," in text and ",32," in text
    finished.study = original
    finished.write()
