"""What a training run does when it is told to stop: it saves a checkpoint at once, and goes on from there later.

Slurm sends SIGTERM ahead of a time limit (`--signal`), at a preemption with a grace time, and at `scancel`; SIGKILL
follows.
"""

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from effllm.errors import Interrupted


class SaveAndStop(TrainerCallback):
    """On SIGTERM, save after the current step and end the run with `Interrupted`.

    Stands behind the callback that marks checkpoints as complete. With several ranks all of them call it, and stop
    after the same step, whichever of them was told: a saving that some ranks do not take part in would never end.
    """

    def __init__(self, label: str):
        self._label = label
        self._is_warned = False
        self._is_stopping = False
        self._group: dist.ProcessGroup | None = None
        self._previous: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if dist.is_available() and dist.is_initialized():
            # On the host, so that asking does not wait for the device.
            self._group = dist.new_group(backend="gloo")
        self._previous = signal.signal(signal.SIGTERM, self._warn)
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        # The last step is followed by the end of the run, which is sooner there than a checkpoint.
        if self._any_rank_is_warned() and state.global_step < state.max_steps:
            self._is_stopping = control.should_save = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self._is_stopping:
            if self._group is not None:
                # The launcher ends all ranks when the first one ends: none may go before the checkpoint is marked.
                dist.barrier(self._group)
            raise Interrupted(
                f"{self._label} was told to stop and has saved step {state.global_step} of {state.max_steps}: run "
                "again to go on from there."
            )
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        signal.signal(signal.SIGTERM, self._previous)
        return control

    def _warn(self, _number: int, _frame: FrameType | None) -> None:
        self._is_warned = True

    def _any_rank_is_warned(self) -> bool:
        if self._group is None:
            return self._is_warned
        flag = torch.tensor([int(self._is_warned)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())
