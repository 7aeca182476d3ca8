"""Jobs end with the Snakemake that started them, and the next run waits until they have.

A Snakemake that is killed leaves its jobs to init: no signal reaches them, and the kernel's signal for a parent's death
is bound to the thread that forked, with a shell in between. So each Snakemake names itself in the environment, and the
launcher of a job watches those named. While it and its stage live they hold a lock of the kernel, for which the next
run waits: the memory of a GPU is free only when the last process has ended. What Slurm runs is not on this line: jobs
outlive the Snakemake that submitted them, and the next run waits for the queue.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from effllm.errors import UserError
from effllm.runtime.artifact import write_text

_RUNS = "EFFLLM_RUNS"
_LOCK = "EFFLLM_RUNNING"
_PERIOD_S = 0.5
# Descriptors of the lock that this process holds.
_HELD: list[int] = []
_SCRIPTS = Path(".snakemake", "scripts")


def announce(inherit: bool) -> None:
    """Name this process to the jobs that it starts; with `inherit`, beside the ones that it is itself a job of."""
    runs = [os.environ[_RUNS]] if inherit and os.environ.get(_RUNS) else []
    me = _identity(os.getpid())
    assert me is not None
    os.environ[_RUNS] = " ".join([*runs, me])


def attach(scratch: Path) -> None:
    """Tie this process to the runs that started it: it is killed when one of them ends. Does nothing outside of a run.

    scratch: of the results; the lock lies there. Raises UserError if a run has ended already.
    """
    runs = _runs()
    if not runs:
        return
    os.environ[_LOCK] = str(scratch.absolute() / "running")
    hold()
    threading.Thread(target=_watch, args=(runs,), name="lifeline", daemon=True).start()


def hold() -> None:
    """Take part in the launcher's lock, to the end of this process and of children that get `held`.

    Raises UserError if the run has ended already.
    """
    if not (path := os.environ.get(_LOCK)):
        return
    # Never closed: the kernel does so when the process has ended.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _HELD.append(descriptor)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    # After the lock: a next run that did not find it held began when this one's had ended.
    if not all(map(_is_alive, _runs())):
        raise UserError("the Snakemake that started this job has ended: start it again.")


def held() -> list[int]:
    """Descriptors to hand to a child that is to hold the lock too."""
    return list(_HELD)


def await_left_overs(scratch: Path) -> None:
    """Wait until no job of an earlier run is alive on this host, saying for whom."""
    with open(scratch / "running", "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holders = _holders(os.fstat(stream.fileno()).st_ino)
            print(
                "waiting for what an earlier run in this directory has left running"
                + (f": process {', '.join(holders)}" if holders else ""),
                file=sys.stderr,
                flush=True,
            )
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks.
            return


def clear_left_overs(scratch: Path, temporary: Iterable[Path]) -> None:
    """Delete what a killed Snakemake in this directory left; note this one's `temporary` folders for the next run."""
    noted = scratch / "temporary.json"
    # Without the list, or with a damaged one, empty folders stay.
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        for path in map(Path, json.loads(noted.read_bytes())):
            if path.name.startswith("snakemake") or path.parent.name == "snakemake-runtime-cache":
                shutil.rmtree(path, ignore_errors=True)
    for path in _SCRIPTS.glob("tmp*.py"):
        path.unlink(missing_ok=True)
    write_text(noted, json.dumps([str(path) for path in temporary]))


def _watch(runs: Iterable[str]) -> None:
    pause = threading.Event()
    while all(map(_is_alive, runs)):
        pause.wait(_PERIOD_S)
    # The stage goes with it: the kernel kills it when its launcher has ended.
    os.kill(os.getpid(), signal.SIGKILL)


def _runs() -> list[str]:
    """The runs that this process is a job of, of those whose processes it can see."""
    me = _identity(os.getpid())
    assert me is not None
    return [run for run in os.environ.get(_RUNS, "").split() if _place(run) == _place(me)]


def _identity(pid: int) -> str | None:
    """A process for all time: boot, namespace, number, start in clock ticks; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}/{pid}/{fields[19]}"


def _place(identity: str) -> str:
    return identity.rsplit("/", 2)[0]


def _is_alive(identity: str) -> bool:
    return _identity(int(identity.split("/")[-2])) == identity


def _holders(inode: int) -> list[str]:
    """Numbers of the processes that hold a lock on a file, as far as the kernel lists them."""
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    return sorted({line[4] for line in locks if line[1] == "FLOCK" and line[5].endswith(f":{inode}")})
