"""Which windows a run takes when: in random order as before, in a curriculum's order exactly."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer

from effllm.training.arguments import training_arguments
from effllm.training.curriculum import available, paced, random_order, training_order
from effllm.training.settings import Curriculum, Pacing, PretrainingRun

WINDOWS, BATCH, STEPS = 500, 8, 40
DIFFICULTY = np.random.default_rng(7).permutation(WINDOWS).astype(np.float32)


def _order(steps: int = STEPS, difficulty: np.ndarray = DIFFICULTY, **settings: Any) -> np.ndarray:
    curriculum = Curriculum.model_validate({"by": "x", **settings})
    return training_order(curriculum, difficulty, BATCH, steps, seed=3)


class _Recorded(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Notes which of its samples were taken."""

    def __init__(self, length: int):
        self.length = length
        self.taken: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.taken.append(index)
        return {"x": torch.ones(1)}


class _Weight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).mean()}


@pytest.mark.parametrize(("windows", "steps"), [(500, 40), (96, 30)])
def test_random_order_is_the_trainer_s_own(micro: dict[str, Any], tmp_path: Path, windows: int, steps: int) -> None:
    changes = {"global_batch_size": BATCH, "micro_batch_size": 4, "max_steps": steps, "seed": 3}
    recipe = PretrainingRun.model_validate(
        micro["pretraining"]["llama-1m"] | changes | {"checkpoint_every_steps": None}
    )
    dataset = _Recorded(windows)
    arguments = training_arguments(recipe, tmp_path)
    Trainer(model=_Weight(), args=arguments, train_dataset=dataset).train()
    assert dataset.taken[: steps * BATCH] == random_order(windows, BATCH, steps, seed=3).tolist()


def test_one_after_the_other_from_easy_or_from_hard() -> None:
    taken = random_order(WINDOWS, BATCH, STEPS, seed=3)
    easy, hard = _order(first="easy"), _order(first="hard")
    assert sorted(easy) == sorted(hard) == sorted(taken), "the windows of random order, each once"
    assert (np.diff(DIFFICULTY[easy]) > 0).all()
    assert hard.tolist() == easy[::-1].tolist()


def test_windows_without_a_value_come_last_and_equal_ones_at_random() -> None:
    difficulty = (DIFFICULTY % 3).astype(np.float32)
    difficulty[DIFFICULTY < 50] = np.nan
    taken = random_order(WINDOWS, BATCH, STEPS, seed=3)
    for first, values in (("easy", [0, 1, 2]), ("hard", [2, 1, 0])):
        expected = [number for value in values for number in taken if difficulty[number] == value]
        expected += [number for number in taken if np.isnan(difficulty[number])]
        assert _order(difficulty=difficulty, first=first).tolist() == expected


def test_a_warm_up_is_followed_by_random_order_step_by_step() -> None:
    taken, order = random_order(WINDOWS, BATCH, STEPS, seed=3), _order(share=0.25)
    assert order[10 * BATCH :].tolist() == taken[10 * BATCH :].tolist()
    assert sorted(order[: 10 * BATCH]) == sorted(taken[: 10 * BATCH])
    assert (np.diff(DIFFICULTY[order[: 10 * BATCH]]) > 0).all()


def test_segments_take_windows_in_turn_and_order_each_of_them() -> None:
    plain, order = _order(), _order(segments=4)
    assert sorted(order) == sorted(plain)
    for number, segment in enumerate(np.split(order, 4)):
        assert segment.tolist() == plain[number::4].tolist()
    two_passes = _order(steps=2 * (WINDOWS // BATCH), segments=2)
    first, second = np.split(two_passes, 2)
    # Only the two windows left out of each pass, and what is dealt behind them, can be in one half twice.
    assert len(set(first)) > 0.98 * len(first) and len(set(second)) > 0.98 * len(second)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_pacing_opens_the_share_that_it_names(exponent: float) -> None:
    pacing = Pacing(start=0.2, full_at=0.6, exponent=exponent)
    ranked = np.arange(1000, 1000 + STEPS * BATCH)
    order = paced(ranked, pacing, BATCH, np.random.default_rng(0))
    for step, batch in enumerate(order.reshape(STEPS, BATCH)):
        share = 1.0 if step >= 0.6 * STEPS else 0.2 + 0.8 * (step / STEPS / 0.6) ** exponent
        assert available(pacing, step / STEPS) == pytest.approx(share)
        assert (batch < 1000 + np.ceil(share * len(ranked) + 1e-9)).all()
    # All that is open is drawn from, not its easiest part alone.
    late = order[-10 * BATCH :]
    assert late.min() < 1000 + 0.3 * len(ranked) and late.max() > 1000 + 0.9 * len(ranked)


def test_what_never_runs_out_is_taken_once_and_what_does_comes_again_evenly() -> None:
    sooner, later = {"start": 0.1, "full_at": 0.8}, {"start": 0.25, "full_at": 1.0, "exponent": 100.0}
    assert sorted(_order(pacing=sooner)) == sorted(_order())
    ranked = np.arange(STEPS * BATCH)
    order = paced(ranked, Pacing(**later), BATCH, np.random.default_rng(0))
    # Until harder ones join, near the end, a quarter of the windows is all there is.
    quarter = len(ranked) // 4
    counts = Counter(order[: 2 * quarter + 20].tolist())
    assert set(counts) == set(range(quarter)) and set(counts.values()) == {2, 3}
    assert _order(pacing=later).tolist() == _order(pacing=later).tolist()
