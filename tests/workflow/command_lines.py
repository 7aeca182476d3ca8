"""Run many Snakemake command lines for the price of one start: each in a fork of a process that has imported it.

python -m tests.workflow.command_lines < [[argument, ...], ...]    prints [[exit code, output], ...]
"""

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from snakemake.cli import main as snakemake
from snakemake.executors.touch import Executor as TouchExecutor

_AT_ONCE = 2


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of one command line."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            _become(arguments)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def _become(arguments: list[str]) -> None:
    code = 1
    try:
        # It would rest 0.1 s after every file.
        TouchExecutor.SLEEPING_TIME = 0
        snakemake(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    lines = json.load(sys.stdin)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        json.dump(list(pool.map(run, lines)), sys.stdout)
