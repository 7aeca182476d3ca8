"""Runs a server and ends it with everything that it has started, whatever becomes of the process that asked for it.

    python guard.py GRACE_S PROGRAM [ARGUMENT ...]

The server runs until it ends by itself, or until standard input does: that is a pipe of which the stage has the other
end, so that a stage which is killed ends it too. Processes that the server leaves behind, in groups of their own too,
become children of this one and end with it. Exits with the server's code, 128 + n where signal n ended it.

Nothing but the standard library, so that it starts at once.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PERIOD_S = 0.1
_LIBC = ctypes.CDLL(None)


class Children:
    """The server and what descends from it."""

    def __init__(self, command: list[str]):
        self.code: int | None = None
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_end_with_parent)

    def reap(self) -> None:
        """Note what has ended."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self._server.pid:
                    code = os.waitstatus_to_exitcode(found[1])
                    self.code = code if code >= 0 else 128 - code
                    # It must not be waited for again when it is collected.
                    self._server.returncode = code

    def end(self, grace_s: float) -> None:
        """Ask the server's group to end, then kill whatever is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while left := _descendants(os.getpid()):
            if time.monotonic() > deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
            self.reap()
        self.reap()


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _descendants(ancestor: int) -> list[int]:
    """Processes that descend from one and have not ended."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            parents[int(path.parent.name)] = int(parent)
            if state in "ZX" and int(parent) != ancestor:
                del parents[int(path.parent.name)]
    found = [ancestor]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def main() -> None:
    """Run the server."""
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: told.append(number))
    children = Children(command)
    while children.code is None and not told and not select.select([0], [], [], _PERIOD_S)[0]:
        children.reap()
    children.end(grace_s)
    sys.exit(children.code or 0)


if __name__ == "__main__":
    main()
