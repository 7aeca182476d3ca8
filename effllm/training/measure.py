"""Efficiency of training: steady steps only, without the first ones of a process and without checkpoint saves."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from effllm.telemetry import Telemetry

# The first steps of a process allocate, compile and fill caches.
WARMUP_STEPS = 3
WINDOW = "train"


class MeasureSteps(TrainerCallback):
    """Opens the window `train` after the warm-up steps, and pauses it while a checkpoint is written."""

    def __init__(self, telemetry: Telemetry):
        self.telemetry = telemetry
        self.first_step = 0
        self.steps = 0
        self.is_open = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.first_step = state.global_step + WARMUP_STEPS
        return control

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if not self.is_open and state.global_step >= self.first_step:
            self.telemetry.begin_window(WINDOW)
            self.is_open = True
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.is_open:
            self.steps += 1
            # The Trainer's own callback has decided by now whether it will save after this step.
            if control.should_save:
                self.telemetry.pause(WINDOW)
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.is_open:
            self.telemetry.resume(WINDOW)
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.is_open:
            self.telemetry.end_window(WINDOW)
        return control

    def content(self, tokens_per_step: int) -> dict[str, Any]:
        """Figures of the steady steps, once the telemetry has ended: AL in s per iteration, tokens per second."""
        if not self.is_open:
            reason = f"fewer than {WARMUP_STEPS + 1} steps ran in this process"
            return {"steps": 0, "latency_s_per_iteration": None, "tokens_per_s": None, "reason": reason}
        summary = self.telemetry.summary(WINDOW)
        return {
            "latency_s_per_iteration": summary["duration_s"] / self.steps,
            "reason": None,
            "steps": self.steps,
            "telemetry": summary,
            "tokens_per_s": self.steps * tokens_per_step / summary["duration_s"],
        }
