"""The workflow before a cluster: what is refused without one, and what runs where."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from effllm.cluster.requests import GPU_STAGES
from effllm.runtime.launch import stage_environment
from effllm.stages import STAGES
from tests.conftest import REPOSITORY, SNAKEMAKE
from tests.workflow.conftest import Workdir

PROFILES = ("gh200", "h200")


@pytest.fixture
def without_slurm(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has what Snakemake needs, and nothing of Slurm."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "sh", "env", "git", "uname", "which"):
        if path := shutil.which(name):
            (programs / name).symlink_to(path)
    return {"PATH": f"{Path(sys.executable).parent}:{programs}", "HOME": str(tmp_path)}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_host_without_slurm_is_refused_at_once_and_may_plan(
    workdir: Workdir, without_slurm: dict[str, str], profile: str
) -> None:
    def snakemake(*options: str) -> subprocess.CompletedProcess[str]:
        place = ["--directory", str(workdir.path), "--profile", f"profiles/{profile}", *options]
        command = [*SNAKEMAKE, *place, "--config", f"study={workdir.path / 'study.yaml'}", "--", "results/table9.csv"]
        # The plugin would wait for ever.
        return subprocess.run(command, capture_output=True, text=True, env=without_slurm, cwd=REPOSITORY, timeout=60)

    refused = snakemake()
    output = refused.stdout + refused.stderr
    assert refused.returncode and "Traceback" not in output
    assert "error: sbatch and squeue and scancel cannot be found on this host, so no job can be submitted" in output
    planned = snakemake("-n", "--quiet", "rules")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert not (workdir.path / "results").exists()


def test_what_needs_the_hub_runs_on_the_submitting_host_and_nothing_else_does() -> None:
    block = re.search(r"localrules:\n((?:    \w+,\n)+)", (REPOSITORY / "Snakefile").read_text())
    local = {name.strip(" ,") for name in block.group(1).splitlines()} - {"all", "table", "report"}
    assert local == {name for name, stage in STAGES.items() if stage.network}


def test_jobs_have_neither_the_hub_nor_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for stage in STAGES.values():
        environment = stage_environment(stage, threads=1)
        assert (environment.get("HF_HUB_OFFLINE") == "1") == (not stage.network)
        assert ("HF_TOKEN" in environment) == stage.network


def test_every_rule_that_is_a_job_asks_for_its_resources() -> None:
    for name, stage in STAGES.items():
        text = "".join(path.read_text() for path in (REPOSITORY / "rules").glob("*.smk"))
        assert (f'**requests("{name}")' in text) == (not stage.network)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_gpu_stage_names_the_type_and_cores(profile: str) -> None:
    settings = yaml.safe_load((REPOSITORY / "profiles" / profile / "config.yaml").read_text())
    assert set(settings["set-resources"]) == set(GPU_STAGES)
    assert all(value == {"gpu_model": profile} for value in settings["set-resources"].values())
    assert set(settings["set-threads"]) == {*GPU_STAGES, "corpus", "tokens"}
