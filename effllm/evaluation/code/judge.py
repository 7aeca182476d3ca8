"""What becomes of a generated program: its outcome under the benchmark's tests, and pass@k over several of them."""

import math
import select
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from effllm.evaluation.code.isolation import Limits, command
from effllm.evaluation.code.values import decode, encode

# A line from an isolated process: longer ones end the run.
_LONGEST_LINE = 2**22
_AT_A_TIME = 4


def run(program: str, prompt: str, tests: str, name: str, isolation: str | list[str], limits: Limits) -> str:
    """ "passed", or why not: "failed: ERROR", "time limit" or "ended" (killed, out of memory, or gone by itself).

    program: the module that should define the function `name`. prompt: what the tests may use besides. tests: define
    `check(candidate)`. Both processes are dead when this returns.
    """
    deadline = time.monotonic() + limits.seconds
    with (
        _Process(command(isolation, "candidate", limits), deadline) as candidate,
        _Process(command(isolation, "checker", limits), deadline) as checker,
    ):
        try:
            candidate.send(encode((program, name)).encode())
            checker.send(encode((prompt, tests, name)).encode())
            while True:
                kind, _, content = checker.receive().partition(b" ")
                if kind == b"verdict":
                    verdict = decode(content)
                    return verdict[0] if len(verdict) == 1 else f"failed: {verdict[1]}"
                candidate.send(content)
                checker.send(candidate.receive())
        except TimeoutError:
            return "time limit"
        except (OSError, ValueError, TypeError):
            return "time limit" if time.monotonic() >= deadline else "ended"


def outcomes(
    programs: Sequence[str], prompt: str, tests: str, name: str, isolation: str | list[str], limits: Limits
) -> list[str]:
    """`run` for each of `programs`, a few at a time."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(pool.map(lambda program: run(program, prompt, tests, name, isolation, limits), programs))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate of the chance that one of `k` programs passes, `passed` of `samples` having done so.

    1 - C(samples - passed, k) / C(samples, k) (Chen et al. 2021, equation 1).

    Raises:
        ValueError: k is not within 1 to `samples`, or `passed` not within 0 to `samples`.
    """
    if not (1 <= k <= samples and 0 <= passed <= samples):
        raise ValueError(f"pass@{k} of {samples} samples, {passed} of them right, is not defined")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


class _Process:
    """A child with lines to and from it; every wait ends at the deadline, and leaving the context kills it."""

    def __init__(self, arguments: list[str], deadline: float):
        self._deadline = deadline
        self._buffer = b""
        self._child = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        # Both are pipes, as asked for above.
        assert self._child.stdin is not None and self._child.stdout is not None
        self._stdin, self._stdout = self._child.stdin, self._child.stdout

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()
        self._stdin.close()
        self._stdout.close()

    def send(self, line: bytes) -> None:
        """Write `line`; `TimeoutError` at the deadline, `OSError` once the child is gone."""
        rest = memoryview(line + b"\n")
        while rest:
            # A pipe that is ready takes this many bytes without a wait.
            self._wait([], [self._stdin])
            rest = rest[self._stdin.write(rest[: select.PIPE_BUF]) :]

    def receive(self) -> bytes:
        """The next line; `TimeoutError` at the deadline, `ValueError` if it ends or never comes to an end."""
        while b"\n" not in self._buffer:
            self._wait([self._stdout], [])
            more = self._stdout.read(2**16)
            if not more or len(self._buffer) > _LONGEST_LINE:
                raise ValueError("no whole line")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _wait(self, readable: list, writable: list) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0 or not any(select.select(readable, writable, [], left)):
            raise TimeoutError
