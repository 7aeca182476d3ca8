"""A stage is added to a copy of the package by one module, one rule, their lines, and one line of each profile."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ADDITION = REPOSITORY / "tests" / "additions" / "stage"
ID = "llama-1m.bfloat16"
# Files of the addition by their places, and lines to be added behind others.
FILES = {
    "sparsity.py": "effllm/stages/sparsity.py",
    "count_zeros.py": "effllm/quantization/count_zeros.py",
    "sparsity.smk": "rules/sparsity.smk",
}
LINES = {
    "effllm/stages/__init__.py": (
        ("quantize import QuantizeStage", "from effllm.stages.sparsity import SparsityStage"),
        ('"profile": ProfileStage(),', '    "sparsity": SparsityStage(),'),
    ),
    "Snakefile": (('include: "rules/profile.smk"', 'include: "rules/sparsity.smk"'),),
    "profiles/gh200/config.yaml": (("profile: {gpu_model", "  sparsity: {gpu_model: gh200}"),),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the stage."""
    directory = tmp_path_factory.mktemp("checkout")
    for name in ("effllm", "rules", "workflow_scripts", "profiles", "config"):
        shutil.copytree(REPOSITORY / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", directory)
    for source, place in FILES.items():
        shutil.copy(ADDITION / source, directory / place)
    for name, additions in LINES.items():
        lines = (directory / name).read_text().splitlines()
        for behind, line in additions:
            (number,) = (number for number, text in enumerate(lines) if behind in text)
            lines.insert(number + 1, line)
        (directory / name).write_text("\n".join(lines) + "\n")
    return directory


def run(checkout: Path, *command: str) -> str:
    """What a command prints in the copy."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_is_checked_and_planned(checkout: Path, tmp_path: Path) -> None:
    effllm = [sys.executable, "-m", "effllm.cli"]
    listed = [line.split() for line in run(checkout, *effllm, "check", "config/tiny.yaml").splitlines()]
    nodes = {stage: ids for stage, *ids in filter(None, listed)}
    assert nodes["sparsity"] == nodes["quantize"], "a node of each model in each precision"
    place = ("--study", "config/tiny.yaml", "--results", str(tmp_path / "results"), "--json")
    plan = json.loads(run(checkout, *effllm, "plan", *place, f"sparsity/{ID}"))
    (node,) = (node for node in plan["nodes"] if node["stage"] == "sparsity")
    assert node["devices"] == 1 and node["name"] == f"sparsity/{ID}"
    assert plan["stages"]["sparsity"] == {"nodes": 1, "cached": 0, "absent": 0, "to_do": 1}
    status = json.loads(run(checkout, *effllm, "status", *place))
    assert any(entry["name"] == f"sparsity/{ID}" for entry in status["nodes"])


def test_it_has_specs_parents_requests_and_results(checkout: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    facts = json.loads(run(checkout, sys.executable, str(ADDITION / "use.py"), str(results)))
    assert facts["spec"] == {"config": {"threshold": 0.0}, "stage": "sparsity", "version": 1}
    assert facts["parents"] == {"model": f"{results}/quantize/{ID}/manifest.json"}
    assert (facts["request"]["minutes"], facts["request"]["gpus_per_node"]) == (10, 1)
    assert facts["result"] == {"zero_share": 0.5}


def test_its_jobs_are_planned_by_snakemake(checkout: Path, tmp_path: Path) -> None:
    place = ["--directory", str(tmp_path), "--profile", "profiles/gh200", "--config", "study=config/tiny.yaml"]
    target = f"results/sparsity/{ID}/manifest.json"
    printed = run(checkout, sys.executable, "-m", "snakemake", "-n", *place, "--", target)
    # The profile names the rule, which Snakemake would refuse if there were none.
    assert f"Counting the zeros of {ID}" in printed
    assert {"quantize", "sparsity"} <= {line.split()[0] for line in printed.splitlines() if line.split()[1:] == ["1"]}
