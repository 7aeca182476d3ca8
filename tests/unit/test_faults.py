"""Real faults of a machine end in one sentence: in stages, tables, commands and the start of the workflow."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from effllm.artifact import Artifact
from effllm.faults import fault_of_machine
from effllm.stage import SCRATCH
from effllm.stages import STAGES
from tests.conftest import REPOSITORY, SNAKEMAKE

SPEC = {
    "stage": "tokens",
    "version": STAGES["tokens"].version,
    "config": {
        "kind": "synthetic",
        "vocab_size": 64,
        "tokens": 50_000,
        "distribution": "uniform",
        "exponent": 1.0,
        "seed": 0,
    },
}


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system of memory; skipped where that is not allowed."""
    mounted: list[Path] = []

    def at(path: Path, options: str) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield at
    for path in reversed(mounted):
        subprocess.run(["umount", "-l", str(path)], check=True)


def run_stage(
    root: Path, limits: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    spec = root.parent / "spec.json"
    spec.write_text(json.dumps(SPEC))
    argv = [sys.executable, "-m", STAGES["tokens"].module, "--spec", str(spec), "--output", str(root / "tokens" / "x")]
    return subprocess.run(argv, capture_output=True, text=True, env=os.environ | environment, preexec_fn=limits)


def says(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    output = result.stdout + result.stderr
    assert result.returncode != 0, output
    assert "Traceback" not in output, output
    for part in parts:
        assert part in output, output


def test_a_full_file_system(mount: Callable[..., Path], tmp_path: Path) -> None:
    says(run_stage(mount(tmp_path / "results", "size=4k")), "error: the file system of", "is full")


def test_a_read_only_file_system(mount: Callable[..., Path], tmp_path: Path) -> None:
    results = mount(tmp_path / "results", "size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
    says(run_stage(results), "read-only file system")
    command = [*SNAKEMAKE, "--directory", str(tmp_path), "--cores", "1", "results/benchmark/word-order/manifest.json"]
    says(subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY), "read-only file system")


def test_a_scratch_on_another_file_system(mount: Callable[..., Path], tmp_path: Path) -> None:
    results = tmp_path / "results"
    mount(results / SCRATCH, "size=4m")
    for _ in range(2):
        done = run_stage(results)
        assert done.returncode == 0, done.stderr
        artifact = Artifact.open(results / "tokens" / "x" / "manifest.json")
        artifact.verify()
        # Built anew over itself.
        (results / "tokens" / "x" / "manifest.json").unlink()
        (results / "tokens" / "x" / ".published.json").unlink()
    assert not any((results / ".arriving" / "tokens").iterdir())


def test_files_past_the_limit_of_their_size(tmp_path: Path) -> None:
    done = run_stage(tmp_path / "results", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    says(done, "ulimit -f")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ran_out_is_said_however_it_is_told(error: Exception) -> None:
    assert "ulimit -v" in str(fault_of_machine(error, Path("results/x")))


def test_a_stage_that_runs_out_of_memory(tmp_path: Path) -> None:
    program = (
        "import resource; from effllm import stage\n"
        "def build(job):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "    bytearray(4 << 30)\n"
        "stage.main('tokens', build)\n"
    )
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    argv = ["--spec", str(tmp_path / "spec.json"), "--output", str(tmp_path / "results" / "tokens" / "x")]
    says(subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True), "memory ran out")


@pytest.mark.parametrize("command", ["check config/tiny.yaml", "status", "plan", "devices"])
def test_a_home_that_cannot_be_written(command: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "effllm.cli", *command.split()]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"HOME": "/proc"})
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_a_stage_without_a_home(tmp_path: Path) -> None:
    assert run_stage(tmp_path / "results", HOME="/proc").returncode == 0


def test_the_workflow_runs_without_a_home_where_its_cache_has_another_place(tmp_path: Path) -> None:
    """Snakemake makes its cache before it reads a Snakefile; docs/cluster.md names the variable."""
    command = [*SNAKEMAKE, "--directory", str(tmp_path), "-n", "results/tokenizer/python-docs-2k/manifest.json"]
    environment = os.environ | {"HOME": "/proc", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["a{b", "{RESULTS}", "{{x}}", "two\nlines"])
def test_a_path_that_snakemake_cannot_take_is_named(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    command = [*SNAKEMAKE, "--directory", str(directory), "-n", "results/table9.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    says(done, "a brace or a line break")


def test_odd_names_are_taken(tmp_path: Path) -> None:
    directory = tmp_path / 'it\'s 50 % "odd" é $HOME'
    directory.mkdir()
    command = [*SNAKEMAKE, "--directory", str(directory), "-n", "results/table9.csv"]
    assert subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY).returncode == 0
