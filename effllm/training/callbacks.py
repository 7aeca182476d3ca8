"""What a training run does between its steps: it reports progress and a loss that is no number, and is scored."""

import math
import sys
import time
from collections.abc import Collection
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from effllm.errors import CellFailure

_PERIOD_S = 10.0


class ReportProgress(TrainerCallback):
    """Print `progress:` lines, at most one per ten seconds, which the launcher relays to the terminal."""

    def __init__(self, label: str):
        self.label = label
        self.started = self.last = time.monotonic()
        self.first_step = 0
        self.loss: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.started = self.last = time.monotonic()
        self.first_step = state.global_step
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> TrainerControl:
        self.loss = (logs or {}).get("loss", self.loss)
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        now = time.monotonic()
        if now - self.last >= _PERIOD_S or state.global_step == state.max_steps:
            self.last = now
            done = state.global_step - self.first_step
            left = (now - self.started) / done * (state.max_steps - state.global_step)
            loss = f", loss {self.loss:.3f}" if self.loss is not None else ""
            print(
                f"progress: {self.label} step {state.global_step}/{state.max_steps}{loss}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        return control


class StopAtNaN(TrainerCallback):
    """End the cell when the loss is NaN or infinite: it never recovers, and the table says so."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> TrainerControl:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise CellFailure("nan", f"the training loss is {loss} at step {state.global_step}")
        return control


class ScoreOnTheWay(TrainerCallback):
    """Have the Trainer evaluate after the given steps; stands before what pauses the measurement meanwhile."""

    def __init__(self, steps: Collection[int]):
        self._steps = frozenset(steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        control.should_evaluate = state.global_step in self._steps
        return control
