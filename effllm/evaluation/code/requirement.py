"""Whether generated programs can be run isolated on this machine, found out by running one."""

import os
import shutil
import subprocess

from effllm.errors import UserError
from effllm.evaluation.code.isolation import BUBBLEWRAP, Limits, bubblewrap
from effllm.evaluation.code.judge import run


def require_isolation(isolation: str | list[str], where: str) -> None:
    """`UserError`, beginning with `where`, unless programs can be isolated here."""
    if isolation == BUBBLEWRAP and shutil.which("bwrap") is None:
        raise UserError(
            f"{where}.isolation: generated programs run isolated by bubblewrap, and there is no `bwrap` on this "
            "machine; install the package bubblewrap, or name the command of another isolation."
        )
    tests = "def check(candidate):\n    assert candidate(2) == 3\n"
    program = "def f(x):\n    return x + 1\n"
    try:
        outcome = run(program, program, tests, "f", isolation, Limits(seconds=60))
    except OSError as error:
        outcome = str(error)
    if outcome != "passed":
        raise UserError(
            f"{where}.isolation: a program that is right does not pass its test under it ({outcome}; "
            f"{_complaint(isolation)}); let this user create namespaces, or name the command of another isolation."
        )


def _complaint(isolation: str | list[str]) -> str:
    prefix = bubblewrap(os.geteuid() == 0) if isolation == BUBBLEWRAP else list(isolation)
    try:
        ended = subprocess.run([*prefix, "true"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:200]
    return (ended.stderr.strip().splitlines() or [f"`true` under it ends with {ended.returncode}"])[-1][:200]
