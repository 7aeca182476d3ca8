"""Which samples a fine-tuning run consumed, noted where they reach the model, over kills and over ranks."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from effllm.data.instructions.batches import ConsumedSamples, SequenceDataset, take_indices
from effllm.training.run import MapStyle


def sample_order(sequences: int, samples_per_step: int, steps: int, seed: int) -> np.ndarray:
    """Numbers of the sequences in the order of training, int64 (steps * samples_per_step,).

    Every pass is a permutation of its own without the last, partial step. The order depends on the arguments alone: not
    on the method, the micro batch or the ranks.
    """
    generator = np.random.default_rng(seed)
    wanted = steps * samples_per_step
    in_a_pass = sequences // samples_per_step * samples_per_step
    passes = [generator.permutation(sequences)[:in_a_pass] for _ in range(-(-wanted // in_a_pass))]
    return np.concatenate(passes)[:wanted]


class Ordered(Dataset[Any]):
    """The sequences of a data set in the order of training, with their own numbers."""

    def __init__(self, dataset: MapStyle, order: np.ndarray):
        self.dataset = dataset
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.order[index])]


class RecordConsumed(TrainerCallback):
    """Notes the samples of every batch, one file per rank; give it before what marks checkpoints complete."""

    def __init__(self, dataset: SequenceDataset, directory: Path):
        self._consumed = ConsumedSamples(dataset)
        self._directory = directory

    def take(self, batch: dict[str, Any]) -> None:
        """Note what is in `batch`, and leave only what the model takes."""
        self._consumed.add(take_indices(batch))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step:
            self._consumed.load(self._in_checkpoint(args, state))
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._consumed.end_step()
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._consumed.save(self._in_checkpoint(args, state))
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._consumed.save(rank_file(self._directory, args.process_index))
        return control

    @staticmethod
    def _in_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
        assert args.output_dir is not None
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        return rank_file(checkpoint, args.process_index)


def rank_file(directory: Path, rank: int) -> Path:
    """Where a rank notes its samples."""
    return directory / f"consumed-{rank}.jsonl"


def order_digest(steps: Sequence[Sequence[str]]) -> str:
    """sha256 (hex) of the sample ids by step; within a step their order does not count, which ranks change."""
    text = "".join(" ".join(sorted(ids)) + "\n" for ids in steps)
    return hashlib.sha256(text.encode()).hexdigest()
