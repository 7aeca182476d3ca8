"""What all tests share: the repository, the shipped studies, and a study small enough for a test."""

import copy
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from effllm.stages import STAGES
from effllm.study.inheritance import read_study
from tests.programs import run_apart

REPOSITORY = Path(__file__).resolve().parents[1]
# The longest run, the embedded study, takes a quarter of it.
_LIMIT_S = 1500
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# No test rests on the speed of the machine, and every run draws the same examples.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What was imported lives to the end: the collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of GPUs are skipped where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_text() -> dict[str, Any]:
    """config/tiny.yaml, parsed but not checked; shared, so copy it before changing it."""
    parsed = read_study(REPOSITORY / "config" / "tiny.yaml")
    # YAML's anchors make several runs one object: a change to one would be a change to all.
    return json.loads(json.dumps(parsed))


@pytest.fixture
def tiny(tiny_text: dict[str, Any]) -> dict[str, Any]:
    """A copy of config/tiny.yaml to change."""
    return copy.deepcopy(tiny_text)


@pytest.fixture
def micro(tiny: dict[str, Any]) -> dict[str, Any]:
    """The tiny study cut down to what a test can run: two models, a few steps, two benchmarks."""
    return cut_down(tiny)


def cut_down(study: dict[str, Any]) -> dict[str, Any]:
    """Two models of a few thousand parameters, cast and quantized, on two small benchmarks."""
    study = copy.deepcopy(study)
    study["pretraining"] = {id: study["pretraining"][id] for id in ("llama-1m", "qwen2-1m")}
    for run in study["pretraining"].values():
        run["architecture"].update(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
        run["optimizer"]["warmup_steps"] = 2
        run.update(max_steps=12, checkpoint_every_steps=4, sequence_length=64, log_every_steps=2)
    study |= {section: {} for section in ("images", "diffusion", "sampling", "features", "fidelity", "serving")}
    study |= {section: {} for section in ("captions", "generators", "tuning")}
    study["models"] = {id: study["models"][id] for id in ("llama-1m", "qwen2-1m")}
    study["instructions"] = {id: study["instructions"][id] for id in ("stdlib-describe",)}
    study["instructions"]["stdlib-describe"]["maximum_samples"] = 200
    study["methods"]["freeze"]["frozen_layers"] = 1
    study["finetuning"] = {id: study["finetuning"][id] for id in ("describe",)}
    study["finetuning"]["describe"].update(models=["llama-1m"], max_steps=12, learning_rate=5.0e-3, held_out_samples=40)
    study["finetuning"]["describe"].update(log_every_steps=2, checkpoint_every_steps=4)
    study["precisions"] = {id: study["precisions"][id] for id in ("bfloat16", "int4")}
    study["precisions"]["int4"].update(group_size=32)
    study["precisions"]["int4"]["calibration"].update(samples=8, sequence_length=64)
    study["benchmarks"] = {id: study["benchmarks"][id] for id in ("adjacent-swap", "perplexity")}
    study["benchmarks"]["adjacent-swap"]["items"] = 20
    study["benchmarks"]["perplexity"]["items"] = 2
    study["inference"]["workloads"] = {
        "single": {"prompt_tokens": 8, "new_tokens": 8},
        "batch": {"prompt_tokens": 4, "new_tokens": 4, "batch_size": 2},
    }
    study["inference"].update(
        idle_s=0.1, warmup_maximum=3, repeats=2, minimum_window_s=0.06, cooldown_s=0.0, maximum_relative_interval=1000
    )
    rows = {
        "models": ["llama-1m", "qwen2-1m"],
        "precisions": list(study["precisions"]),
        "benchmarks": list(study["benchmarks"]),
        "baseline": "bfloat16",
    }
    study["tables"] = {"table9": {**rows, "workload": "single"}, "table16": dict(rows)}
    return study


def spec_of(stage: str, config: dict[str, Any]) -> dict[str, Any]:
    """The spec of a node, at the stage's version."""
    return {"stage": stage, "version": STAGES[stage].version, "config": config}


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """A command ended with an error that holds these parts, and without a traceback."""
    output = result.stdout + result.stderr
    assert result.returncode != 0, output
    assert "Traceback" not in output, output
    for part in parts:
        assert part in output, output


def run_snakemake(
    directory: Path, *arguments: str, check: bool = True, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the real workflow in `directory`, its results below it; `fresh`: every program by a start of its own."""
    command = [*SNAKEMAKE, "--directory", str(directory), *arguments]
    try:
        if fresh:
            result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=_LIMIT_S)
        else:
            result = run_apart(command, REPOSITORY, timeout_s=_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        # Bytes, whatever was asked for.
        output = b"".join(stream or b"" for stream in (error.stdout, error.stderr)).decode(errors="replace")
        raise AssertionError(f"snakemake was not done within {_LIMIT_S} s:\n{output}") from None
    if check and result.returncode:
        raise AssertionError(f"snakemake failed ({result.returncode}):\n{result.stdout}\n{result.stderr}")
    return result
