"""Imported by every Python process at its start that has this directory on its path; see tests/programs/__init__.py."""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

ADDRESS = "EFFLLM_TEST_PROGRAMS"
_MODULE = "effllm.runtime.start"


def ask(
    address: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    directory: str,
    streams: Sequence[int],
    timeout_s: float | None = None,
    forwarded: Sequence[int] = (),
) -> int:
    """The exit code of `python WORDS...` in a fork of the server's; as subprocess has it, -N after signal N.

    `forwarded` signals of this process go to the fork. It is killed if this process ends, or after `timeout_s`.
    """
    request = json.dumps({"words": list(words), "environment": dict(environment), "directory": directory}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(request).to_bytes(8)], streams)
        connection.sendall(request)
        for number in forwarded:
            signal.signal(number, lambda number, _frame: connection.send(bytes([number])))
        connection.settimeout(timeout_s)
        answer = connection.recv(4)
    if not answer:
        raise RuntimeError("the process that forks programs has ended")
    return int.from_bytes(answer, signed=True)


def _is_forked(words: Sequence[str]) -> bool:
    if words[:1] == ["-m"]:
        return words[1] == _MODULE
    return len(words) == 1 and "/.snakemake/scripts/" in words[0]


def _become_one() -> None:
    words = [word for word in sys.orig_argv[1:] if word != "-u"]
    if ADDRESS not in os.environ or not _is_forked(words):
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    code = ask(os.environ[ADDRESS], words, os.environ, os.getcwd(), (0, 1, 2), forwarded=signals)  # noqa: PTH109
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


_become_one()
