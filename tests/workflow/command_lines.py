"""Run many Snakemake command lines for the price of one start: each in a fork of a process that has imported it.

python -m tests.workflow.command_lines < [[argument, ...], ...]    prints [[exit code, output], ...]

One thread forks them all: a lock that another thread held would never be released in the child.
"""

import faulthandler
import gc
import json
import os
import sys
import tempfile
import traceback
from typing import IO, NoReturn

# What a command line imports while it runs, here so that no fork does it again.
import smart_open  # noqa: F401
from snakemake.cli import get_argument_parser
from snakemake.cli import main as snakemake
from snakemake.executors.touch import Executor as TouchExecutor

import effllm.assembly.assemble
import effllm.cluster.requests
import effllm.planning.nodes
import effllm.planning.state
import effllm.runtime.faults
import effllm.runtime.slurm
import effllm.tables.paired  # noqa: F401

_AT_ONCE = 2
# A child that takes longer ends, and says in its output where each of its threads was. They take seconds.
_LIMIT_S = 300


def run_all(lines: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and output of each command line."""
    answers: dict[int, tuple[int, str]] = {}
    children: dict[int, tuple[int, IO[str]]] = {}
    for number, line in enumerate(lines):
        if len(children) == _AT_ONCE:
            _await_one(children, answers)
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when its child has ended)
        child = os.fork()
        if not child:
            _become(line, output)
        children[child] = number, output
    while children:
        _await_one(children, answers)
    return [answers[number] for number in range(len(lines))]


def _await_one(children: dict[int, tuple[int, IO[str]]], answers: dict[int, tuple[int, str]]) -> None:
    child, status = os.wait()
    number, output = children.pop(child)
    with output:
        output.seek(0)
        answers[number] = os.waitstatus_to_exitcode(status), output.read()


def _become(arguments: list[str], output: IO[str]) -> NoReturn:
    code = 1
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        faulthandler.dump_traceback_later(_LIMIT_S, exit=True)
        # It would rest 0.1 s after every file.
        TouchExecutor.SLEEPING_TIME = 0
        snakemake(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    get_argument_parser()
    # A dry run makes little garbage, and what was imported never is.
    gc.freeze()
    gc.disable()
    json.dump(run_all(json.load(sys.stdin)), sys.stdout)
