"""The process that forks programs for tests: `python -m tests.programs.server DESCRIPTOR`, of a listening socket.

A connection is one program: a request and the streams of the program come in, its exit code goes out. A byte that comes
after the request is a signal for it; the end of the connection is its end. It ends when its own input does.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn


def main(listener: socket.socket) -> None:
    """Fork what is asked for."""
    _import_libraries()
    programs: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    ended, ending = os.pipe()
    os.set_blocking(ended, False)
    os.set_blocking(ending, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ending)
    for source in (listener, ended, 0):
        selector.register(source, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                for child in programs:
                    os.kill(child, signal.SIGKILL)
                shutil.rmtree(Path(listener.getsockname()).parent)
                return
            if key.fileobj == ended:
                with contextlib.suppress(BlockingIOError):
                    os.read(ended, 4096)
                for connection in _answer(programs):
                    with contextlib.suppress(KeyError):
                        selector.unregister(connection)
                    connection.close()
            elif key.fileobj is listener:
                connection = listener.accept()[0]
                request, streams = _receive(connection)
                child = os.fork()
                if not child:
                    # Of the others' connections a fork would keep its copies open.
                    _become(request, streams, [listener, connection, *programs.values()])
                for stream in streams:
                    os.close(stream)
                programs[child] = connection
                selector.register(connection, selectors.EVENT_READ, child)
            elif key.data in programs:
                received = key.fileobj.recv(1)
                os.kill(key.data, received[0] if received else signal.SIGKILL)
                if not received:
                    selector.unregister(key.fileobj)


def _import_libraries() -> None:
    """What programs import, so that no fork does it again."""
    gc.disable()
    import deepspeed  # noqa: F401
    import lm_eval.tasks  # noqa: F401
    import smart_open  # noqa: F401
    import snakemake.script  # noqa: F401
    from snakemake.cli import get_argument_parser
    from transformers.models import llama, phi3, qwen2

    import effllm.assembly.assemble
    import effllm.evaluation.metered
    import effllm.runtime.slurm  # noqa: F401
    from effllm.stages import STAGES

    for stage in STAGES.values():
        importlib.import_module(stage.module)
    for family in (llama, phi3, qwen2):
        importlib.import_module(f"{family.__name__}.modeling_{family.__name__.rpartition('.')[2]}")
    get_argument_parser()
    gc.freeze()
    gc.enable()


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    request = bytearray()
    while len(request) < int.from_bytes(length):
        request += connection.recv(1 << 16)
    return json.loads(request), streams


def _answer(programs: dict[int, socket.socket]) -> Iterable[socket.socket]:
    """Tell how programs have ended; their connections."""
    while programs:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        connection = programs.pop(child)
        with contextlib.suppress(OSError):
            connection.send(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))
        yield connection


def _become(request: dict[str, Any], streams: Sequence[int], others: Iterable[socket.socket]) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for connection in others:
            connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        tempfile.tempdir = None
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
        _run(request["words"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(words: list[str]) -> None:
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
