"""What a killed Snakemake leaves ends, and the next run waits for it. Every kill here is real."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from effllm.runtime import lifeline

_LIMIT_S = 120
# A Snakemake, as far as its jobs see: it names itself and starts one through a shell, from a thread that ends.
_RUN = """
import subprocess, sys, threading, time
from effllm.runtime import lifeline
lifeline.announce(inherit=True)
job = threading.Thread(target=lambda: subprocess.Popen(["bash", "-c", "set -e; " + sys.argv[1] + "; true"]))
job.start()
job.join()
time.sleep(1000)
"""
_JOB = """
import os, sys
from pathlib import Path
from effllm.runtime import lifeline
from effllm.runtime.launch import run_logged
lifeline.attach(Path(sys.argv[1]))
run_logged(
    [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"],
    log=Path(sys.argv[1], "log"),
    environment=dict(os.environ),
)
"""


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _started(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    (tmp_path / "job.py").write_text(_JOB)
    run = subprocess.Popen([sys.executable, "-c", _RUN, f"{sys.executable} {tmp_path / 'job.py'} {tmp_path}"])
    log = tmp_path / "log"
    _until(lambda: log.exists() and log.read_text().endswith("\n"))
    return run, int(log.read_text())


def test_launcher_and_stage_end_with_a_snakemake_that_is_killed_and_not_with_its_thread(tmp_path: Path) -> None:
    run, stage = _started(tmp_path)
    launcher = psutil.Process(stage).parent()
    assert launcher is not None
    time.sleep(1.2)
    assert not _has_ended(stage)
    run.kill()
    run.wait()
    _until(lambda: _has_ended(stage) and _has_ended(launcher.pid))


def test_the_next_run_waits_for_what_still_lives_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stage = _started(tmp_path)
    launcher = psutil.Process(stage).ppid()
    # Stopped processes see nothing, like one that the driver of a GPU holds for a while.
    for pid in (launcher, stage):
        os.kill(pid, signal.SIGSTOP)
    run.kill()
    run.wait()
    waiting = subprocess.Popen(
        [sys.executable, "-c", f"from effllm.runtime.lifeline import *; await_left_overs(Path({str(tmp_path)!r}))"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    line = waiting.stderr.readline()
    assert "an earlier run in this directory has left running" in line
    # The stage alone, too, is waited for: its launcher is gone, and the kernel's signal has not been handled.
    os.kill(launcher, signal.SIGCONT)
    _until(lambda: _has_ended(stage))
    assert waiting.wait(timeout=_LIMIT_S) == 0
    lifeline.await_left_overs(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_job_whose_run_has_ended_before_it_started_does_not_start(tmp_path: Path) -> None:
    dead = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; from effllm.runtime import lifeline as l; l.announce(False); print(os.environ[l._RUNS])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    job = [sys.executable, "-c", f"from effllm.runtime.lifeline import *; attach(Path({str(tmp_path)!r}))"]
    result = subprocess.run(job, env=os.environ | {lifeline._RUNS: dead}, capture_output=True, text=True)
    assert "the Snakemake that started this job has ended" in result.stderr
    # Of another host nothing can be known, and outside of a run there is nothing to tie to.
    for runs in ("other" + dead, ""):
        subprocess.run(job, env=os.environ | {lifeline._RUNS: runs}, check=True)


def test_folders_and_scripts_of_a_killed_run_are_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / ".snakemake" / "scripts" / "tmpabc.stage.py"
    script.parent.mkdir(parents=True)
    script.touch()
    left, other = tmp_path / "snakemakeabc", tmp_path / "snakemakexyz"
    for path in (left, other, tmp_path / "mine"):
        path.mkdir()
    (tmp_path / "temporary.json").write_text(json.dumps([str(left), str(tmp_path / "mine"), str(tmp_path / "gone")]))
    lifeline.clear_left_overs(tmp_path, [other])
    assert not left.exists()
    assert not script.exists()
    assert other.exists()
    assert (tmp_path / "mine").exists()
    lifeline.clear_left_overs(tmp_path, [])
    assert not other.exists()


@pytest.mark.parametrize("content", [b"", b"[", b"3", b"[3]", b"\xff", b"{}"])
def test_a_damaged_list_of_folders_is_written_anew(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary.json").write_bytes(content)
    lifeline.clear_left_overs(tmp_path, [tmp_path / "snakemakeabc"])
    assert json.loads((tmp_path / "temporary.json").read_text()) == [str(tmp_path / "snakemakeabc")]
