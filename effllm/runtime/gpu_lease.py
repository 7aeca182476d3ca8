"""GPUs of one machine, each held by one job at a time.

The workflow announces the devices that it may use, once and in the environment, which its jobs inherit. A job takes
as many as its stage asks for by locks of the kernel, in a directory of the machine and the user, so that two runs of
the workflow share the GPUs as two jobs of one do. A lock ends with the processes that hold it, whatever ended them.
"""

import contextlib
import fcntl
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from effllm.errors import UserError

_ANNOUNCED = "EFFLLM_GPUS"
_MEMORY = "EFFLLM_GPU_MEMORY_B"
# Part of a GPU: the processes of one job cannot talk to each other over several of them.
_SLICE = "MIG-"
_RETRY_S = 0.5


@dataclass(frozen=True)
class Share:
    """What a job holds. gpus: UUIDs; cores: those that go with them; locks: file descriptors its processes keep open.

    None: nothing was announced, and the job sees what the machine shows.
    """

    gpus: tuple[str, ...] | None = None
    cores: frozenset[int] = frozenset()
    locks: tuple[int, ...] = ()

    def environment(self) -> dict[str, str]:
        """What shows a process these GPUs and no others."""
        if self.gpus is None:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def announce(gpus: Mapping[str, Sequence[int]], memory_b: float | None = None) -> None:
    """Let the jobs of this process use these GPUs: cores that go with each, by its UUID; `memory_b` is of one."""
    if memory_b is not None:
        os.environ[_MEMORY] = str(memory_b)
    os.environ[_ANNOUNCED] = json.dumps({uuid: list(cores) for uuid, cores in gpus.items()})


def announced() -> dict[str, list[int]] | None:
    """What `announce` said in this process, or in the one that started it; None where nothing was said."""
    text = os.environ.get(_ANNOUNCED)
    return None if text is None else dict(json.loads(text))


def announced_memory_b() -> float | None:
    """The memory of one of the announced GPUs, that of the smallest; None where nothing was said."""
    text = os.environ.get(_MEMORY)
    return None if text is None else float(text)


@contextlib.contextmanager
def leased(count: int, what: str, directory: Path | None = None) -> Iterator[Share]:
    """Hold `count` of the announced GPUs for the length of a block, after those who asked before.

    `what` names the job; `UserError` where it asks for more than there are.
    """
    gpus = announced()
    if gpus is None:
        yield Share()
        return
    if count == 0:
        yield Share(gpus=())
        return
    fitting = [uuid for uuid in gpus if count == 1 or not uuid.startswith(_SLICE)]
    if count > len(fitting):
        of = "whole GPUs" if len(fitting) < len(gpus) else "GPUs"
        raise UserError(
            f"{what} asks for {count} {of} and this run has {len(fitting)}: lower its `devices` in the study, or "
            "run it where there are more."
        )
    place = directory or _directory()
    with ExitStack() as stack:
        # Who asks for several is not overtaken by those who ask for one: they stand behind it here.
        queue = _open(place / "queue", stack)
        _wait(queue, what)
        held: dict[str, int] = {}
        while len(held) < count:
            for uuid in fitting:
                if uuid not in held and len(held) < count:
                    file = _open(place / uuid, stack)
                    if _try(file):
                        held[uuid] = file
            if len(held) < count:
                time.sleep(_RETRY_S)
        fcntl.flock(queue, fcntl.LOCK_UN)
        # In the order of the announcement, whichever came free first.
        chosen = tuple(uuid for uuid in gpus if uuid in held)
        cores = frozenset(core for uuid in chosen for core in gpus[uuid])
        yield Share(chosen, cores, tuple(held.values()))


def _directory() -> Path:
    """Where the locks of this user on this machine are: nobody else may write there."""
    path = Path(tempfile.gettempdir(), f"effllm-gpus-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{path} is not this user's directory, in which the GPUs are locked: delete it, or set TMPDIR.")
    return path


def _open(path: Path, stack: ExitStack) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, file)
    return file


def _try(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(queue: int, what: str) -> None:
    if not _try(queue):
        print(f"{what}: waiting for a GPU", file=sys.stderr, flush=True)
        fcntl.flock(queue, fcntl.LOCK_EX)
