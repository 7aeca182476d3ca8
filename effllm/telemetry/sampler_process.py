"""The workload's end of the sampler: starts the process, waits until it is ready, watches it and stops it."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class SamplerProcess:
    """A running sampler, or the reason why there is none.

    A fresh interpreter is started, not a copy of this one: forking a process that holds CUDA contexts and
    threads is unsafe, and multiprocessing's spawn would import the workload's main module again. `failure` is
    None while all is well; telemetry that fails never stops the workload, it makes its windows invalid.
    """

    def __init__(
        self,
        directory: Path,
        sources: Sequence[str],
        channels: Sequence[tuple[str, str]],
        period_s: float,
        options: Mapping[str, Any],
        ready_timeout_s: float = 30.0,
    ):
        """Start it and wait for its first readings. `channels` fixes the index of each (source, quantity)."""
        self.spool = directory / "sampler.spool"
        self.spool.unlink(missing_ok=True)
        self.failure: str | None = None
        self.events: list[dict[str, Any]] = []
        self._stderr = directory / "sampler.stderr"
        self._pending = b""
        paths = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(self._stderr, "wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "effllm.telemetry.sampler"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        # Both are pipes, as asked for above.
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        config = {
            "spool": str(self.spool.resolve()),
            "sources": list(sources),
            "channels": [list(channel) for channel in channels],
            "period_s": period_s,
            "options": dict(options),
            "parent_pid": os.getpid(),
        }
        try:
            self._stdin.write(json.dumps(config).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            # It died at once; what it said on standard error is the reason given below.
            self._process.wait()
        self._await("ready", ready_timeout_s)

    @property
    def pid(self) -> int:
        """Process id of the sampler."""
        return self._process.pid

    def check(self) -> str | None:
        """None while the sampler runs, else why it does not, in one sentence."""
        if self.failure is None and self._process.poll() is not None:
            self.failure = self._exit_reason()
        return self.failure

    def stop(self, timeout_s: float = 10.0) -> None:
        """Have it write what it holds and end. Its last event tells what it cost."""
        if self._process.poll() is None and self.failure is None:
            self._stdin.close()
            self._await("stopped", timeout_s)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._stdin, self._stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                # The configuration could not be delivered because the process had died; that is already
                # recorded.
                continue
        if self._stderr.stat().st_size == 0:
            self._stderr.unlink()

    def _await(self, event: str, timeout_s: float) -> None:
        """Collect events until `event` comes; a sampler that ends or stays silent first is a failure."""
        deadline_s = time.monotonic() + timeout_s
        output = self._stdout.fileno()
        while not any(seen["event"] == event for seen in self.events):
            readable, _, _ = select.select([output], [], [], max(0.0, deadline_s - time.monotonic()))
            if not readable:
                self.failure = f"the sampler process was not {event} within {timeout_s:g} s"
                return
            block = os.read(output, 65536)
            if not block:
                self._process.wait()
                self.failure = self._exit_reason()
                return
            *lines, self._pending = (self._pending + block).split(b"\n")
            self.events.extend(json.loads(line) for line in lines)

    def _exit_reason(self) -> str:
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = self._stderr.read_text(errors="replace").strip().splitlines()
        return f"the sampler process {how}" + (f": {said[-1]}" if said else "")
