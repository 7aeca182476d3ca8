"""A user's mistake gets a sentence before any job starts; a kill or a broken artifact loses nothing finished."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from effllm.runtime.lease import holder_of
from tests.conftest import assert_refused, run_snakemake
from tests.slowdown import until
from tests.workflow.conftest import Workdir


def test_bad_configuration_is_refused_before_any_job(workdir: Workdir) -> None:
    workdir.study["pretraining"]["llama-1m"]["optimizer"]["learning_rate"] = "1e-4"
    workdir.write()
    result = workdir.snakemake("all", check=False)
    assert_refused(result, "pretraining.llama-1m.optimizer.learning_rate", "write 1.0e-4")
    assert not (workdir.path / "results").exists()


@pytest.mark.parametrize("target", ["results/quantize/lama-1m.int4/manifest.json", "results/tabel9.csv"])
def test_a_typo_in_a_target_is_refused_at_once(workdir: Workdir, target: str) -> None:
    assert_refused(workdir.snakemake(target, check=False), "MissingRuleException", target)


def test_a_profile_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text("config: [study=config/nowhere.yaml]\ncores: 1\n")
    assert_refused(run_snakemake(tmp_path, "--profile", str(profile), "-n", check=False), "config/nowhere.yaml")


def test_files_that_do_not_exist_are_named(workdir: Workdir) -> None:
    workdir.study["corpora"]["python-docs"]["source"] = {"kind": "files", "paths": ["nowhere/*.parquet"]}
    workdir.write()
    result = workdir.snakemake("all", check=False)
    assert_refused(result, "corpora.python-docs.source.paths", "nowhere/*.parquet", "matches no file")


def test_a_study_that_needs_the_hub_says_so_offline(workdir: Workdir) -> None:
    workdir.study["models"]["hub"] = {"source": {"kind": "hub", "repo": "a/b", "revision": "0" * 40}}
    workdir.write()
    result = workdir.snakemake("results/model/hub/manifest.json", check=False)
    assert_refused(result, "the model a/b at 00000000 is not in the hub's cache", "HF_HUB_OFFLINE is set: unset it")


def test_without_profile_and_configuration_the_tiny_study_is_used(tmp_path: Path) -> None:
    output = run_snakemake(tmp_path, "-n", "results/table9.csv")
    counts = {line.split()[0]: line.split()[-1] for line in output.stdout.splitlines() if len(line.split()) == 2}
    assert counts["quantize"] == "10"
    assert counts["pretrain"] == "2"


@pytest.mark.parametrize("profile", ["gh200", "h200"])
def test_the_papers_study_dry_runs_without_gpu_network_or_slurm(tmp_path: Path, profile: str) -> None:
    tables = [f"results/table{number}.csv" for number in (3, 4, 5, 6, 9)]
    output = run_snakemake(tmp_path, "--profile", f"profiles/{profile}", "-n", *tables)
    counts = {line.split()[0]: line.split()[-1] for line in output.stdout.splitlines() if len(line.split()) == 2}
    expected = {"model": "9", "quantize": "27", "evaluate": "162", "profile": "27", "benchmark": "6"}
    expected |= {"pretrain": "31", "table": "5"}
    assert {rule: counts.get(rule) for rule in expected} == expected


def _await(process: subprocess.Popen[bytes], condition: Callable[[], Any], what: str) -> None:
    """Return once the condition holds; the process must not end before."""
    until(lambda: process.poll() is not None or condition(), what, timeout_s=300)
    assert process.poll() is None, f"the run has ended before {what}"


def _has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(workdir: Workdir, text: Workdir) -> None:
    workdir.take(text)
    run = workdir.study["pretraining"]["llama-1m"]
    run |= {"max_steps": 3000, "checkpoint_every_steps": 10}
    workdir.study["pretraining"] = {"llama-1m": run}
    workdir.study["models"] = {"llama-1m": workdir.study["models"]["llama-1m"]}
    for table in workdir.study["tables"].values():
        table["models"] = ["llama-1m"]
    workdir.write()
    target = "results/pretrain/llama-1m/manifest.json"
    process = workdir.start(target)
    work = workdir.path / "results" / ".scratch" / "pretrain" / "llama-1m"
    _await(process, lambda: list((work / "work").glob("checkpoint-*/complete")), "a checkpoint")
    corpus = workdir.path / "results" / "corpus" / "python-docs" / "manifest.json"
    finished_at = corpus.stat().st_mtime_ns
    process.kill()
    process.wait()
    # Nothing of the run outlives the kill of Snakemake's main process.
    stage = holder_of(work / "lease").pid
    until(lambda: _has_ended(stage), "the stage has ended")
    spec = json.loads((work.parent / "llama-1m.spec.json").read_text())
    assert spec["config"]["max_steps"] == 3000
    result = workdir.snakemake(target, options=["-n"])
    assert "corpus" not in [line.split()[0] for line in result.stdout.splitlines() if len(line.split()) == 2]
    process = workdir.start(target)
    log = workdir.path / "logs" / "pretrain" / "llama-1m.log"
    _await(process, lambda: log.exists() and "going on from step" in log.read_text(), "training resumes")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) != 0
    assert corpus.stat().st_mtime_ns == finished_at


def test_a_second_run_over_the_same_results_is_refused_while_one_is_alive(workdir: Workdir, text: Workdir) -> None:
    workdir.take(text)
    workdir.study["pretraining"]["llama-1m"] |= {"max_steps": 3000}
    workdir.write()
    target = "results/pretrain/llama-1m/manifest.json"
    process = workdir.start(target)
    try:
        claim = workdir.path / "results" / ".scratch" / "pretrain" / "llama-1m" / "lease" / "claim"
        _await(process, claim.exists, "training has begun")
        result = workdir.snakemake("results/benchmark/perplexity/manifest.json", check=False)
        assert_refused(result, f"is in use by process {process.pid}")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=120)


@pytest.mark.slow
def test_a_payload_altered_behind_its_manifest_fails_the_job_with_a_sentence(workdir: Workdir, text: Workdir) -> None:
    workdir.take(text)
    shard = next((workdir.path / "results" / "corpus" / "python-docs").glob("held_out-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-10])
    result = workdir.snakemake("results/benchmark/perplexity/manifest.json", check=False)
    assert_refused(result, f"{shard.relative_to(workdir.path)} has", "delete results/corpus/python-docs and run again")
