"""Real faults of a machine end in one sentence: in stages, tables, commands and the start of the workflow."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from effllm.assembly import assemble
from effllm.errors import EXIT_USER_ERROR, UserError
from effllm.runtime import launch
from effllm.runtime.artifact import Artifact
from effllm.runtime.faults import fault_of_machine, require_place, require_writable
from effllm.runtime.stage import KEY, SCRATCH
from effllm.stages import STAGES
from tests.conftest import REPOSITORY, SNAKEMAKE, assert_refused, spec_of

SLOW = pytest.mark.slow
SPEC = spec_of(
    "tokens",
    {
        "kind": "synthetic",
        "vocab_size": 64,
        "tokens": 50_000,
        "distribution": "uniform",
        "exponent": 1.0,
        "seed": 0,
    },
)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system of memory, or another directory; skipped where that is not allowed."""
    mounted: list[Path] = []

    def at(path: Path, options: str = "", directory: Path | None = None) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        what = ["--bind", str(directory)] if directory else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *what, str(path)], capture_output=True, text=True)
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


def test_a_full_file_system(mount: Callable[..., Path], tmp_path: Path) -> None:
    assert_refused(run_stage(mount(tmp_path / "results", "size=4k")), "error: the file system of", "is full")


def test_a_table_on_a_full_file_system(
    mount: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assemble, "assemble", lambda *_: pl.DataFrame({"row": range(10_000)}))
    earlier = mount(tmp_path / "results", "size=8k") / "table9.csv"
    earlier.write_text("row\n1\n")
    with pytest.raises(SystemExit) as ended:
        assemble.write_table("table9", spec={}, inputs={}, output=str(earlier), log=str(tmp_path / "logs" / "x.log"))
    assert ended.value.code == EXIT_USER_ERROR
    assert f"table9: the file system of {earlier} is full" in capsys.readouterr().err
    assert earlier.read_text() == "row\n1\n"
    assert list(earlier.parent.iterdir()) == [earlier]


def test_a_marker_of_any_bytes_empties_the_scratch(tmp_path: Path) -> None:
    scratch = tmp_path / "results" / SCRATCH / "tokens" / "x"
    scratch.mkdir(parents=True)
    (scratch / KEY).write_bytes(b"\xff")
    (scratch / "checkpoint").touch()
    done = run_stage(tmp_path / "results")
    assert done.returncode == 0, done.stderr
    assert not (scratch / "checkpoint").exists()


def test_a_read_only_file_system(mount: Callable[..., Path], tmp_path: Path) -> None:
    results = mount(tmp_path / "results", "size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
    assert_refused(run_stage(results), "read-only file system")
    command = [*SNAKEMAKE, "--directory", str(tmp_path), "--cores", "1", "results/benchmark/word-order/manifest.json"]
    assert_refused(subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY), "read-only file system")


@pytest.mark.parametrize("place", ["tokens", *(pytest.param(p, marks=SLOW) for p in (SCRATCH, "a mount of the same"))])
def test_what_no_rename_reaches(place: str, mount: Callable[..., Path], tmp_path: Path) -> None:
    results = tmp_path / "results"
    if place in (SCRATCH, "tokens"):
        mount(results / place, "size=4m")
    else:
        # Of one file system, whose device both name.
        (scratch := tmp_path / "scratch").mkdir()
        mount(results / SCRATCH, directory=scratch)
        assert (results / SCRATCH).stat().st_dev == results.stat().st_dev
    for _ in range(2):
        done = run_stage(results)
        assert done.returncode == 0, done.stderr
        artifact = Artifact.open(results / "tokens" / "x" / "manifest.json")
        artifact.verify()
        # Built anew over itself.
        (results / "tokens" / "x" / "manifest.json").unlink()
        (results / "tokens" / "x" / ".published.json").unlink()
    assert [path.name for path in (results / "tokens").iterdir()] == ["x"]


def test_a_file_system_that_the_artifact_does_not_fit_on(mount: Callable[..., Path], tmp_path: Path) -> None:
    stage = mount(tmp_path / "results" / "tokens", "size=32k")
    assert_refused(run_stage(tmp_path / "results"), "is full")
    assert not any(stage.iterdir())


def test_files_past_the_limit_of_their_size(tmp_path: Path) -> None:
    done = run_stage(tmp_path / "results", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert_refused(done, "ulimit -f")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ran_out_is_said_however_it_is_told(error: Exception) -> None:
    assert "ulimit -v" in str(fault_of_machine(error, Path("results/x")))


def test_a_stage_that_runs_out_of_memory(tmp_path: Path) -> None:
    program = (
        "import resource; from effllm.runtime import stage; from effllm.stages import STAGES\n"
        "def build(job):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "    bytearray(4 << 30)\n"
        "stage.main(STAGES['tokens'], build)\n"
    )
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    argv = ["--spec", str(tmp_path / "spec.json"), "--output", str(tmp_path / "results" / "tokens" / "x")]
    assert_refused(
        subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True), "memory ran out"
    )


def test_a_panic_of_a_library_in_rust(tmp_path: Path) -> None:
    """pyo3's PanicException derives from BaseException."""
    program = (
        "from effllm.runtime import stage; from effllm.stages import STAGES\n"
        "class PanicException(BaseException): pass\n"
        "def build(job):\n"
        "    raise PanicException('failed to spawn: Os { code: 11, message: \"Resource temporarily unavailable\" }')\n"
        "stage.main(STAGES['tokens'], build)\n"
    )
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    argv = ["--spec", str(tmp_path / "spec.json"), "--output", str(tmp_path / "results" / "tokens" / "x")]
    assert_refused(
        subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True), "no more threads"
    )


@pytest.mark.parametrize("command", ["effllm.runtime.start effllm.training.pretrain", "effllm.cli devices"])
def test_an_address_space_that_the_libraries_crash_or_hang_in(command: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))

    argv = [sys.executable, "-m", *command.split()]
    # The limit is for the one that hangs.
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=limit, cwd=REPOSITORY, timeout=120)
    assert_refused(done, "500 MiB (ulimit -v)")


def test_an_abort_for_want_of_memory_is_said(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n")
    assert "memory ran out" in launch._explain("tokens", tmp_path / "x", log, -signal.SIGABRT)


def test_a_full_log_does_not_end_the_stage(
    mount: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = mount(tmp_path / "logs", "size=4k") / "x.log"
    program = f"for _ in range(1000): print('x' * 99)\nopen({str(tmp_path / 'done')!r}, 'w')"
    assert launch.run_logged([sys.executable, "-c", program], log=log, environment=dict(os.environ)) == 0
    assert (tmp_path / "done").exists()
    assert capfd.readouterr().err.count("going on without the log") == 1


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


@pytest.mark.parametrize(
    "name", ["a{b", *(pytest.param(name, marks=SLOW) for name in ("{RESULTS}", "{{x}}", "two\nlines"))]
)
def test_a_path_that_snakemake_cannot_take_is_named(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    command = [*SNAKEMAKE, "--directory", str(directory), "-n", "results/table9.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert_refused(done, "a brace or a line break")


def test_odd_names_are_taken(tmp_path: Path) -> None:
    directory = tmp_path / 'it\'s 50 % "odd" é $HOME'
    directory.mkdir()
    command = [*SNAKEMAKE, "--directory", str(directory), "-n", "results/table9.csv"]
    assert subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY).returncode == 0


@pytest.mark.slow
def test_an_interpreter_below_an_odd_path_runs_scripts(tmp_path: Path) -> None:
    """Snakemake starts scripts by the interpreter's path without quotes."""
    environment = tmp_path / 'it\'s my {x} "environment"'
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    # Not as a line of its own: the .pth file of this package's own installation there has to be read too.
    (packages / "all.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    command = [str(environment / "bin" / "python"), *SNAKEMAKE[1:], "--directory", str(tmp_path), "--cores", "1"]
    command += ["results/corpus/python-docs/manifest.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    Artifact.open(tmp_path / "results" / "corpus" / "python-docs" / "manifest.json").verify()


def test_what_lies_in_the_way_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/nowhere")
    (tmp_path / "directory").mkdir()
    require_place(tmp_path / "directory" / "corpus" / "x" / "manifest.json")
    require_writable(tmp_path / "directory" / "not" / "yet")
    for path, sentence in {
        "file/x.log": "file is a file where a directory belongs",
        "link/x.log": "link is a link to /nowhere, which does not exist",
        "directory": "directory is a directory where a file belongs",
    }.items():
        with pytest.raises(UserError, match=sentence):
            require_place(tmp_path / path)


@pytest.mark.parametrize(
    "name",
    [
        "logs",
        pytest.param("results/corpus", marks=SLOW),
        pytest.param("results/corpus/python-docs/manifest.json/", marks=SLOW),
    ],
)
def test_a_run_names_what_lies_in_its_way(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name.endswith("/") else path.touch()
    command = [*SNAKEMAKE, "--directory", str(tmp_path), "--cores", "1", "results/corpus/python-docs/manifest.json"]
    assert_refused(
        subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY), f"error: {name.rstrip('/')} is a "
    )


@pytest.mark.slow
def test_a_working_directory_that_cannot_be_written(mount: Callable[..., Path], tmp_path: Path) -> None:
    mount(tmp_path / "work", "ro,size=4k")
    command = [*SNAKEMAKE, "--directory", str(tmp_path / "work"), "-n", "results/table9.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert_refused(done, f"{tmp_path / 'work'} lies on a read-only file system")
