"""A server that the stage starts: in an environment of its own, on a free port, ended whatever becomes of the stage."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from effllm.errors import CellFailure, EngineError, UserError

_GUARD = Path(__file__).with_name("guard.py")
_GRACE_S = 15.0
_LONGEST_LINE = 200
_LAST_B = 1 << 20
# What the environment of this package says to its own Python only.
_OWN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_MEMORY = ("out of memory", "OutOfMemoryError", "No available memory for the cache blocks", "Cannot allocate memory")
_TRACE = ("Error", "error:", "ERROR")


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class ServerProcess:
    """A server under its guard (guard.py), its output in `log`; `secret` is a text that the log must not keep."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        secret: str | None = None,
    ):
        """Start it. `UserError` where the command is no program."""
        program = shutil.which(command[0])
        if program is None:
            raise UserError(
                f"engine.command: {command[0]} is no program that can be run; install the server in an environment of "
                "its own, and name the program in it by its whole path."
            )
        self.log, self._secret, self._is_ended = log, secret, False
        inherited = {name: value for name, value in os.environ.items() if name not in _OWN}
        path = os.pathsep.join([str(Path(program).absolute().parent), inherited.get("PATH", os.defpath)])
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as stream:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(_GRACE_S), program, *command[1:]],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**inherited, "PATH": path, "DO_NOT_TRACK": "1", **environment},
                start_new_session=True,
                # The locks that say that this job runs, and on which GPUs, are the guard's too until all has ended.
                close_fds=False,
            )

    def require_alive(self) -> None:
        """`EngineError`, or `CellFailure` for lack of memory, once it has ended by itself."""
        code = self._guard.poll()
        if code is None:
            return
        how = f"was ended by {signal.Signals(code - 128).name}" if code > 128 else f"ended with code {code}"
        line = self._last_words()
        if line and any(words in line for words in _MEMORY):
            raise CellFailure("oom", f"the server {how}: {line}")
        raise EngineError(f"the server {how}" + (f": {line}" if line else " without a word"))

    def end(self) -> None:
        """End it and all that it has started; returns when they are gone."""
        if self._is_ended:
            return
        self._is_ended = True
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        self._guard.wait()
        if self._secret:
            text = self.log.read_bytes()
            self.log.write_bytes(text.replace(self._secret.encode(), b"***"))

    def _last_words(self) -> str:
        """The line of the log that says most: of lack of memory, else the last of an error, else the last."""
        with self.log.open("rb") as stream:
            # It may have said more than fits into memory.
            stream.seek(max(0, self.log.stat().st_size - _LAST_B))
            text = stream.read().decode(errors="replace")
        if self._secret:
            text = text.replace(self._secret, "***")
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()][-400:]
        of_memory = [line for line in lines if any(words in line for words in _MEMORY)]
        of_errors = [line for line in lines if any(words in line for words in _TRACE)]
        line = next((found[-1] for found in (of_memory, of_errors, lines) if found), "")
        return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
