"""Checkpoints that can be trusted after a kill: complete ones carry a marker, the others are discarded."""

import os
import shutil
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from effllm.runtime.publishing import share
from effllm.runtime.stage import CHECKPOINT_MARKER


class MarkComplete(TrainerCallback):
    """Mark each checkpoint once all ranks have written theirs of it: a directory alone may be half a checkpoint."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return control
        assert args.output_dir is not None
        directory = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        for path in directory.rglob("*"):
            if path.is_file():
                _fsync(path)
        # Another user of these results may go on from it.
        share(directory)
        (directory / CHECKPOINT_MARKER).touch()
        _fsync(directory)
        return control


def latest_complete(directory: Path, delete: bool = True) -> Path | None:
    """The newest complete checkpoint below `directory`, or None; incomplete ones are deleted (by one of the ranks)."""
    complete = {}
    for checkpoint in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (checkpoint / CHECKPOINT_MARKER).exists():
            complete[int(checkpoint.name.rsplit("-", 1)[1])] = checkpoint
        elif delete:
            shutil.rmtree(checkpoint)
    return complete[max(complete)] if complete else None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
