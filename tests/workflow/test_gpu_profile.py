"""One machine with GPUs: each job sees its own, and a machine without one is told so. NVML is pretended."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from effllm.cli import main
from effllm.planning.plan import plan_of
from effllm.stages.graph import Graph
from effllm.study import load_study
from tests.conftest import REPOSITORY, SNAKEMAKE, assert_refused, run_snakemake

NVML = """
class NVMLError(Exception): pass
GPUS = ["GPU-a", "GPU-b"]
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return len(GPUS)
def nvmlDeviceGetHandleByIndex(index): return GPUS[index]
def nvmlDeviceGetHandleByUUID(uuid): return uuid.decode()
def nvmlDeviceGetUUID(handle): return handle
def nvmlDeviceGetName(handle): return "pretended"
class Memory: total = 80_000_000_000
def nvmlDeviceGetMemoryInfo(handle): return Memory
def refuse(*_): raise NVMLError("Not Supported")
nvmlDeviceGetMigMode = nvmlDeviceGetCpuAffinity = refuse
"""
# Every process of the run: those of stages write down what they see.
SITE = """
import json, os, sys
if "effllm.runtime.start" in sys.orig_argv:
    with open(os.environ["SEEN"], "a") as stream:
        place = sys.orig_argv[sys.orig_argv.index("--output") + 1]
        seen = [place, os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(os.sched_getaffinity(0))]
        stream.write(json.dumps(seen) + "\\n")
"""


def run(path: Path, *targets: str, profile: str = "gpu") -> subprocess.CompletedProcess[str]:
    (path / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": f"{path}:{REPOSITORY}", "SEEN": str(path / "seen"), "TMPDIR": str(path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    place = ["--directory", str(path), "--profile", f"profiles/{profile}", "--config", f"study={path / 'study.yaml'}"]
    command = [*SNAKEMAKE, *place, "--", *targets]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=300)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A directory with the study of attentions, at shapes for a processor."""
    with pytest.raises(SystemExit, match="0"):
        main(["init", "--recipe", "attention", "--device", "cpu", "-o", str(tmp_path / "study.yaml")])
    return tmp_path


def test_each_job_sees_its_own_gpu_and_stages_of_the_processor_none(study: Path) -> None:
    (study / "pynvml.py").write_text(NVML)
    done = run(study, "results/pretrain/gqa/manifest.json")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = {place: shown for place, *shown in map(json.loads, (study / "seen").read_text().splitlines())}
    usable = sorted(os.sched_getaffinity(0))
    assert seen["results/pretrain/gqa"] == ["GPU-a", usable[: len(usable) // 2] or usable]
    assert seen["results/tokens/random"] == ["", usable]


@pytest.mark.parametrize("name", ["one-gpu", "node"])
def test_the_shipped_studies_are_graphs_of_all_their_tables(tmp_path: Path, name: str) -> None:
    """A dry run asks for no GPU, and counts the jobs that the plan counts."""
    study = REPOSITORY / "config" / f"{name}.yaml"
    done = run_snakemake(tmp_path, "-n", "--quiet", "rules", "--profile", "profiles/gpu", "--config", f"study={study}")
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}
    plan = plan_of(Graph(load_study(study), str(tmp_path / "results")))
    to_do = {stage: row["to_do"] for stage, row in plan.stages.items()}
    assert {stage: jobs.get(stage) for stage in to_do if stage != "table"} == {
        stage: count for stage, count in to_do.items() if stage != "table"
    }, done.stderr


def test_a_machine_without_a_gpu_is_named_the_other_profile(study: Path) -> None:
    (study / "pynvml.py").write_text("class NVMLError(Exception): pass\ndef nvmlInit(): raise NVMLError('no driver')\n")
    said = run(study, "results/tokens/random/manifest.json")
    assert_refused(said, "this machine shows no GPU", "no driver", "profiles/local")
    assert not (study / "results" / "tokens").exists()
    assert run(study, "results/tokens/random/manifest.json", profile="local").returncode == 0
