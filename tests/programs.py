"""Run stages as programs to their ends for the price of one start: each in a fork of a process that has imported them.

A run that is to be killed, or whose start is what is tested, is a process of its own instead.
"""

import functools
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class ProgramFailed(Exception):
    """A program that was to succeed did not."""


def run_program(argv: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `[python, -m, MODULE, ...]` in this environment and directory; both its outputs are in `stdout`."""
    module, *arguments = argv[2:]
    with tempfile.NamedTemporaryFile("r") as output:
        request = {"argv": [module, *arguments], "env": dict(os.environ), "cwd": str(Path.cwd()), "output": output.name}
        server = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        result = subprocess.CompletedProcess(argv, code, output.read(), "")
    if check and code:
        raise ProgramFailed(result.stdout)
    return result


@functools.cache
def _server() -> Any:
    """It ends with the session of tests: nothing can ask it any more."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.programs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def _serve() -> None:
    gc.disable()
    import effllm.evaluation.evaluate
    import effllm.training.finetune
    import effllm.training.pretrain  # noqa: F401

    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


def _become(request: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        output = os.open(request["output"], os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = request["argv"]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
