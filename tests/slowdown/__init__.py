"""Slows training runs in other processes down, so that a fault arrives at a known step on a machine of any speed.

Tests kill, interrupt and requeue runs of a few steps, which end before a test could look. So the test makes them wait:

1. `environment()` puts this directory on the PYTHONPATH of the processes that the test starts. At its start every
   Python process imports a module named `sitecustomize` if there is one on its path, and here there is:
   sitecustomize.py. The stage itself, its command line and its code stay as they are.
2. In a training stage, sitecustomize.py wraps the callback that marks a checkpoint as complete: having done so, it
   waits for as long as the file `<scratch>.hold` names this step or an earlier one.
3. The test, through `Held`, writes that file before the run begins (`hold`), waits for the checkpoint (`reach`),
   disturbs the run, and deletes the file (`release`).

In the process of Snakemake on the test's Slurm, it shortens the intervals at which the plugin asks for states of jobs,
and leaves out its rest before each submission.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from effllm.runtime.artifact import write_text


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`base`, changed so that training runs started with it can be held."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), base.get("PYTHONPATH"))))
    return {**base, "PYTHONPATH": path}


def until(condition: Callable[[], Any], what: str, timeout_s: float = 300) -> Any:
    """The first true value of `condition`; fails naming `what` if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)
    return value


class Held:
    """The training run that has this scratch directory."""

    def __init__(self, scratch: Path):
        self.scratch = scratch

    def steps(self) -> set[int]:
        """Steps with a complete checkpoint."""
        return {int(path.parent.name.rpartition("-")[2]) for path in self.scratch.glob("work/checkpoint-*/complete")}

    def hold(self, step: int) -> None:
        """Make the run wait after its first checkpoint of `step` or later."""
        self.scratch.parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(f"{self.scratch}.hold"), str(step))

    def reach(self, step: int) -> None:
        """Return once the run has a checkpoint of `step`."""
        until(lambda: step in self.steps(), f"{self.scratch.name} has a checkpoint of step {step}")

    def kill_at(self, step: int, command: Sequence[str]) -> None:
        """Start the run, and kill it once it has a checkpoint of `step`."""
        self.hold(step)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        self.reach(step)
        process.kill()
        process.wait()

    def release(self) -> None:
        """Let the run continue to its end."""
        Path(f"{self.scratch}.hold").unlink(missing_ok=True)
