"""GPUs of one machine: found with NVML, slices counted, and each held by one job until its process ends."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from effllm.errors import UserError
from effllm.runtime.gpu_lease import announce, leased
from effllm.telemetry.gpus import near_cores, split_cores
from tests.conftest import REPOSITORY

HOLD = """
import os, sys, time
from pathlib import Path
from effllm.runtime.gpu_lease import leased
with leased(int(sys.argv[1]), "x", Path(sys.argv[2])) as share:
    print(",".join(share.gpus), flush=True)
    sys.stdin.readline()
"""


class NVMLError(Exception):
    """As pynvml's."""


def pretended(gpus: dict[str, list[str] | None], affinity: dict[str, int] | None = None) -> Any:
    """A pynvml with these GPUs; one with a list of slices is in MIG mode, and has a gap before the last of them."""

    def mig_handle(handle: str, index: int) -> str:
        slices = gpus[handle]
        assert slices is not None
        places = [*slices[:-1], None, *slices[-1:]]
        if index >= len(places) or (found := places[index]) is None:
            raise NVMLError("Not Found")
        return found

    def mode(handle: str) -> list[int]:
        if handle == "GPU-old":
            raise NVMLError("Not Supported")
        return [int(gpus[handle] is not None), 0]

    def cores(handle: str, words: int) -> list[int]:
        if affinity is None:
            raise NVMLError("Not Supported")
        return [affinity[handle], *[0] * (words - 1)]

    names = list(gpus)
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda index: names[index],
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid.decode(),
        nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetName=lambda handle: handle[:5],
        nvmlDeviceGetMigMode=mode,
        nvmlDeviceGetMaxMigDeviceCount=lambda handle: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=mig_handle,
        nvmlDeviceGetCpuAffinity=cores,
    )


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (None, ["GPU-a", "MIG-1", "MIG-2", "GPU-old"]),
        ("GPU-o,GPU-a", ["GPU-old", "GPU-a"]),
        ("GPU-b", ["MIG-1", "MIG-2"]),
        ("MIG-2", ["MIG-2"]),
        ("", []),
    ],
)
def test_slices_count_as_gpus_and_hidden_ones_are_left_out(shown: str | None, expected: list[str]) -> None:
    nvml = pretended({"GPU-a": None, "GPU-b": ["MIG-1", "MIG-2"], "GPU-old": None})
    assert list(near_cores(nvml, {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown})) == expected


def test_a_gpu_in_mig_mode_without_slices_is_none() -> None:
    assert list(near_cores(pretended({"GPU-a": [], "GPU-b": None}), {})) == ["GPU-b"]


def test_each_gpu_has_cores_near_it_that_no_other_has() -> None:
    nvml = pretended({"GPU-a": None, "GPU-b": None, "GPU-c": None}, {"GPU-a": 0b1111, "GPU-b": 0b1111, "GPU-c": 0xF0})
    dealt = split_cores(near_cores(nvml, {}), list(range(1, 8)))
    assert dealt == {"GPU-a": [1], "GPU-b": [2], "GPU-c": [4, 5, 6, 7]}
    # Where NVML tells nothing, and where there are fewer cores than GPUs.
    assert split_cores(dict.fromkeys("ab", frozenset()), [0, 1, 2, 3]) == {"a": [0, 1], "b": [2, 3]}
    assert split_cores(dict.fromkeys("ab", frozenset()), [5]) == {"a": [5], "b": [5]}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFLLM_GPUS", "")
    announce({"GPU-a": [0], "GPU-b": [1]})


def holder(count: int, directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(count), str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


def is_taken(path: Path) -> bool:
    with open(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def has(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_no_two_jobs_have_one_gpu_and_a_killed_job_frees_its_own(two: None, tmp_path: Path) -> None:
    with leased(1, "first", tmp_path) as mine:
        assert mine.gpus == ("GPU-a",) and mine.cores == {0}
        assert mine.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-a"
        other = holder(1, tmp_path)
        assert has(other) == "GPU-b"
        # One that wants both stands before one that wants any, and gets them when both are free.
        both = holder(2, tmp_path)
        while not is_taken(tmp_path / "queue"):
            time.sleep(0.02)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        last = holder(1, tmp_path)
    assert has(both) == "GPU-a,GPU-b"
    both.communicate("\n")
    assert has(last) in ("GPU-a", "GPU-b")
    last.communicate("\n")


def test_a_gpu_stays_taken_while_a_process_of_its_job_lives(two: None, tmp_path: Path) -> None:
    with leased(1, "first", tmp_path) as share:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=share.locks)
    with leased(1, "second", tmp_path) as second:
        assert second.gpus == ("GPU-b",)
    child.communicate(b"\n")
    with leased(2, "third", tmp_path) as third:
        assert third.gpus == ("GPU-a", "GPU-b")


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EFFLLM_GPUS", raising=False)
    with leased(1, "x", tmp_path) as share:
        assert share.gpus is None and share.environment() == {}
    monkeypatch.setenv("EFFLLM_GPUS", json.dumps({"GPU-a": [0], "MIG-1": [1], "MIG-2": [2]}))
    with pytest.raises(UserError, match=r"pretrain x asks for 2 whole GPUs and this run has 1: lower"):
        leased(2, "pretrain x", tmp_path).__enter__()
    # A stage of the processor sees none, and so disturbs none.
    with leased(0, "x", tmp_path) as share:
        assert share.environment()["CUDA_VISIBLE_DEVICES"] == ""
