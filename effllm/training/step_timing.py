"""Efficiency of training: steady steps only, without the first ones of a process, checkpoint saves and scoring."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from effllm.results.training import Efficiency, RunConditions
from effllm.telemetry import Telemetry
from effllm.telemetry.metrics import mean_ci95, model_flops_utilization

# The first steps of a process allocate, compile and fill caches.
WARMUP_STEPS = 3
WINDOW = "train"
# The interval of the latency is over the means of this many stretches of steps.
BLOCKS = 10
_FIGURES = (
    "flops",
    "latency_s_per_iteration",
    "latency_s_per_iteration_ci95",
    "mfu",
    "telemetry",
    "tokens",
    "tokens_per_s",
)


class MeasureSteps(TrainerCallback):
    """Opens the window `train` after the warm-up steps, and pauses it while the model is scored or saved."""

    def __init__(self, telemetry: Telemetry):
        self.telemetry = telemetry
        self.is_open = False
        self.measured: range = range(0)
        self.block_latency_s: list[float] = []
        self._first_step = self._block_steps = self._steps_in_block = 0
        self._block_s = self._resumed_at = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._first_step = state.global_step + WARMUP_STEPS
        self._block_steps = max(1, (state.max_steps - self._first_step) // BLOCKS)
        return control

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if not self.is_open and state.global_step >= self._first_step:
            self.telemetry.begin_window(WINDOW)
            self.is_open = True
            self.measured = range(state.global_step, state.global_step)
            self._resumed_at = time.perf_counter()
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if not self.is_open:
            return control
        self.measured = range(self.measured.start, state.global_step)
        self._steps_in_block += 1
        is_last_of_block = self._steps_in_block == self._block_steps
        # It is decided by now whether the Trainer will score or save after this step; it scores first.
        is_pause = control.should_evaluate or control.should_save
        if is_last_of_block or is_pause:
            self._stop_clock()
        if is_last_of_block:
            self.block_latency_s.append(self._block_s / self._steps_in_block)
            self._block_s, self._steps_in_block = 0.0, 0
        if is_pause:
            self.telemetry.pause(WINDOW)
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if not control.should_save:
            self._resume()
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._resume()
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.is_open:
            self.telemetry.end_window(WINDOW)
        return control

    def _resume(self) -> None:
        if self.is_open:
            self.telemetry.resume(WINDOW)
            self._resumed_at = time.perf_counter()

    def _stop_clock(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._block_s += now - self._resumed_at
        self._resumed_at = now

    def efficiency(
        self,
        tokens_of_step: Callable[[int], int],
        flops_of_step: Callable[[int], float] | None,
        dtype: str,
        run: RunConditions,
    ) -> Efficiency:
        """What the steady steps cost, once the telemetry has ended; None each with its reason in `reasons`.

        `*_of_step` are called with the number of optimizer steps before the step.
        """
        steps = len(self.measured)
        if not steps:
            reason = f"fewer than {WARMUP_STEPS + 1} steps ran in this process"
            absent: dict[str, Any] = dict.fromkeys(_FIGURES)
            return Efficiency(**dict(run), steps=0, **absent, reasons=dict.fromkeys(_FIGURES, reason))
        reasons = {}
        summary = self.telemetry.summary(WINDOW)
        duration_s = summary.duration_s
        low = high = None
        if len(self.block_latency_s) > 1:
            _, low, high = mean_ci95(self.block_latency_s)
        interval = None if low is None or high is None else [low, high]
        if interval is None:
            reasons["latency_s_per_iteration_ci95"] = f"{steps} steps are too few for an interval"
        tokens = sum(map(tokens_of_step, self.measured))
        flops = sum(map(flops_of_step, self.measured)) if flops_of_step else None
        mfu = None
        if flops is None:
            reasons["flops"] = reasons["mfu"] = "no FLOP formula for this model and method"
        else:
            if run.device.name is not None:
                mfu = model_flops_utilization(flops / run.world_size, duration_s, run.device.name, dtype)
            if mfu is None:
                reasons["mfu"] = f"no peak of {run.device.name!r} in {dtype} is known"
        return Efficiency(
            **dict(run),
            flops=flops,
            latency_s_per_iteration=duration_s / steps,
            latency_s_per_iteration_ci95=interval,
            mfu=mfu,
            reasons=reasons,
            steps=steps,
            telemetry=summary,
            tokens=tokens,
            tokens_per_s=tokens / duration_s,
        )
