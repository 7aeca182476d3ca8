"""Run programs to their ends for the price of one start: each in a fork of a process that has imported the libraries.

Snakemake, the scripts that it starts, stages and ranks of a training run import for seconds what takes milliseconds
afterwards. So each session of tests has one process that has imported all of it:

1. `run_program` and `run_apart` send that process, server.py, what is to run: arguments, environment, directory, and
   where the output goes. It forks, and the fork runs the module or script as Python would.
2. What that program starts in turn is forked too: start/ is on the PYTHONPATH of the programs, and so every Python
   process imports start/sitecustomize.py as it starts. A process that is a stage, a rank, torchrun or a script of
   Snakemake's goes no further: it asks the server for the fork, hands signals on to it, and ends as the fork ends.
   Others start as they always do.

A test that starts processes itself, or has the package start ranks, gives them `environment()` for the second of these.

Each program is a process of its own with its own environment, and dies with the one that started it; but it is a child
of the server, and shares the pages of what was imported. A run that is to be killed, whose start is what is tested, or
whose memory is, is started without.
"""

import atexit
import functools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.programs.start.sitecustomize import ADDRESS, ask

_REPOSITORY = Path(__file__).parents[2]


class ProgramFailed(Exception):
    """A program that was to succeed did not."""


def run_program(argv: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `[python, -m, MODULE, ...]` in this environment and directory; both its outputs are in `stdout`."""
    result = run_apart(argv, Path.cwd(), merged=True)
    if check and result.returncode:
        raise ProgramFailed(result.stdout)
    return result


def run_apart(
    argv: Sequence[str], directory: Path, merged: bool = False, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `[python, ...]` in a directory; its outputs apart, unless `merged`. It is killed after `timeout_s`."""
    with tempfile.NamedTemporaryFile("r") as output, tempfile.NamedTemporaryFile("r") as errors:
        try:
            with open(os.devnull) as nothing, open(output.name, "ab") as out, open(errors.name, "ab") as err:
                streams = [nothing.fileno(), out.fileno(), (out if merged else err).fileno()]
                code = ask(_server(), argv[1:], environment(), str(directory), streams, timeout_s)
        except TimeoutError:
            said = output.read().encode(), errors.read().encode()
            raise subprocess.TimeoutExpired(argv, timeout_s or 0, *said) from None
        return subprocess.CompletedProcess(argv, code, output.read(), errors.read())


def environment() -> dict[str, str]:
    """That of this process, changed so that what a program starts in it is forked too."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent / "start"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, ADDRESS: _server()}


@functools.cache
def _server() -> str:
    """The address of the server, which ends with this process."""
    address = str(Path(tempfile.mkdtemp(prefix="effllm-programs-"), "socket"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    _start(listener)
    return address


def _start(listener: socket.socket) -> None:
    # Libraries that start threads as they are imported start none: a fork would be without them. And threads of jobs
    # that run side by side are not to keep the cores busy as they wait.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "tests.programs.server", str(listener.fileno())]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=environment, cwd=_REPOSITORY, pass_fds=[listener.fileno()]
    )
    listener.close()
    # It ends when its input does.
    atexit.register(server.communicate)
