"""Disturbing a training run at a step that is known, on a machine of any speed.

A process that has this directory on its PYTHONPATH (`environment`) runs sitecustomize.py, by which a training run waits
after a checkpoint for as long as it is held.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from effllm.artifact import write_text


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of processes that can be held."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), base.get("PYTHONPATH"))))
    return {**base, "PYTHONPATH": path}


def until(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """The first true value of `condition`; fails naming `what` if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)
    return value


class Held:
    """A training run with this scratch: `hold` it before it begins, then `reach` the step, disturb it, `release` it."""

    def __init__(self, scratch: Path):
        self.scratch = scratch

    def steps(self) -> set[int]:
        """Steps with a complete checkpoint."""
        return {int(path.parent.name.rpartition("-")[2]) for path in self.scratch.glob("work/checkpoint-*/complete")}

    def hold(self, step: int) -> None:
        """Let the run, once it has a checkpoint of `step` or a later one, wait there."""
        self.scratch.parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(f"{self.scratch}.hold"), str(step))

    def reach(self, step: int) -> None:
        """Return once the run has a checkpoint of `step`."""
        until(lambda: step in self.steps(), f"{self.scratch.name} has a checkpoint of step {step}")

    def release(self) -> None:
        """Let the run go on to its end."""
        Path(f"{self.scratch}.hold").unlink(missing_ok=True)
