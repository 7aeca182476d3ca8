"""The exponential moving average of a model's weights, as part of the checkpoints."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

AVERAGE = "average.safetensors"


class MovingAverage(TrainerCallback):
    """average <- d average + (1 - d) weights after every step, d = min(decay, (1 + step) / (10 + step)), in float32.

    The warm-up of d keeps the random weights out of the average of a short run. The first rank has it; give it before
    what marks checkpoints complete. After training it is in `directory`.
    """

    def __init__(self, model: nn.Module, decay: float, directory: Path):
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._average: dict[str, Tensor] = {}
        self._decay = decay
        self._directory = directory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if not state.is_world_process_zero:
            return control
        self._average = {name: weight.detach().float().clone() for name, weight in self._weights.items()}
        if state.global_step:
            for name, tensor in load_file(self._in_checkpoint(args, state)).items():
                self._average[name].copy_(tensor)
        return control

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if self._average:
            step = state.global_step
            decay = min(self._decay, (1 + step) / (10 + step))
            weights = [self._weights[name].detach().float() for name in self._average]
            torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if self._average:
            save_file(self._average, self._in_checkpoint(args, state))
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if self._average:
            save_file(self._average, self._directory / AVERAGE)
        return control

    @staticmethod
    def _in_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
        assert args.output_dir is not None
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / AVERAGE


def take_average(model: nn.Module, directory: Path) -> None:
    """Put the average that a run has left in `directory` into a model of the same shape."""
    missing, unexpected = model.load_state_dict(load_file(directory / AVERAGE), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
