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

    The warm-up of d keeps the random weights out of the average of a short run. The first rank has it, or, where FSDP2
    shards the weights, every rank its shards; files hold it whole, so that any number of ranks goes on from them. Give
    it before what marks checkpoints complete. After training it is in `directory`.
    """

    def __init__(self, model: nn.Module, decay: float, directory: Path, is_sharded: bool = False):
        self._model = model
        self._is_sharded = is_sharded
        self._weights: dict[str, Tensor] = {}
        self._average: dict[str, Tensor] = {}
        self._decay = decay
        self._directory = directory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if not (state.is_world_process_zero or self._is_sharded):
            return control
        # Not those that the model was made with, which sharding has replaced.
        self._weights = {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
        self._average = {name: weight.detach().float().clone() for name, weight in self._weights.items()}
        if state.global_step:
            for name, tensor in load_file(self._in_checkpoint(args, state)).items():
                self._average[name].copy_(self._placed(tensor, self._average[name]))
        return control

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if self._average:
            step = state.global_step
            decay = min(self._decay, (1 + step) / (10 + step))
            weights = [self._local(self._weights[name].detach()).float() for name in self._average]
            torch._foreach_lerp_([self._local(tensor) for tensor in self._average.values()], weights, 1 - decay)
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        self._save(self._in_checkpoint(args, state), state)
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        self._save(self._directory / AVERAGE, state)
        return control

    def _save(self, path: Path, state: TrainerState) -> None:
        """All ranks give their shards; the first one writes them, on its host's memory once they are whole."""
        whole = {}
        for name, tensor in self._average.items():
            full = tensor.full_tensor() if self._is_sharded else tensor  # type: ignore[attr-defined]  # of a DTensor
            if state.is_world_process_zero:
                whole[name] = full.cpu()
        if whole:
            save_file(whole, path)

    def _local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if self._is_sharded else tensor  # type: ignore[attr-defined]  # of a DTensor

    def _placed(self, whole: Tensor, like: Tensor) -> Tensor:
        if not self._is_sharded:
            return whole
        # Half a second that other strategies need not pay.
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)

    @staticmethod
    def _in_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
        assert args.output_dir is not None
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / AVERAGE


def take_average(model: nn.Module, directory: Path) -> None:
    """Put the average that a run has left in `directory` into a model of the same shape."""
    missing, unexpected = model.load_state_dict(load_file(directory / AVERAGE), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
