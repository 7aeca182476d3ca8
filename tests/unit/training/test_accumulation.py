"""Every family gets the same gradient from a batch in one piece and from the same batch in several."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer

from effllm.models.families import model_config, random_model
from effllm.study import load_study
from effllm.training.arguments import training_arguments
from effllm.training.pretrain import collate
from effllm.training.settings import PretrainingRun
from tests.conftest import REPOSITORY

RUNS = load_study(REPOSITORY / "config" / "tiny.yaml").pretraining
FAMILIES = (
    "gqa-0.3m",
    "mla-0.3m",
    "nsa-0.3m",
    "relative-0.6m",
    "qwen2.5-0.3m",
    "mamba-0.3m",
    "mamba2-0.3m",
    "pythia-0.3m",
    "rwkv-0.3m",
)
VOCABULARY = 64


def trained(run: PretrainingRun, micro_batch_size: int, directory: Path) -> list[tuple[float, float]]:
    """Loss and norm of the gradient in each of two optimizer steps on random tokens."""
    changes = {"sequence_length": 32, "max_steps": 2, "global_batch_size": 4, "log_every_steps": 1}
    optimizer = run.optimizer.model_copy(update={"warmup_steps": 0})
    recipe = run.model_copy(update={**changes, "micro_batch_size": micro_batch_size, "optimizer": optimizer})
    config = model_config(recipe.architecture, VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    tokens = torch.randint(1, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(0)).numpy()
    trainer = Trainer(random_model(config, seed=0), training_arguments(recipe, directory), collate, list(tokens))
    trainer.train()
    return [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(name: str, tmp_path: Path) -> None:
    whole, pieces = (trained(RUNS[name], size, tmp_path) for size in (4, 1))
    assert len(whole) == 2
    for one, other in zip(whole, pieces, strict=True):
        assert other == pytest.approx(one, rel=2e-3)
