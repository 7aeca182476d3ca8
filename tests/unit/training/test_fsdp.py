"""FSDP2's arithmetic, on one gloo rank: Accelerate itself shards only where there is CUDA."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from effllm.models.decoder import EffConfig, EffForCausalLM
from effllm.training.arguments import mixed_precision_policy


@pytest.fixture
def one_gloo_rank(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def decoder() -> EffForCausalLM:
    torch.manual_seed(0)
    config = EffConfig(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return EffForCausalLM(config).train()


def step(model: EffForCausalLM, items: torch.Tensor | None = None) -> torch.Tensor:
    tokens = torch.arange(256).view(2, 128) * 7 % 512
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False, skip_logits=True, num_items_in_batch=items).loss
    loss.backward()
    return loss.detach()


def test_a_sharded_step_has_the_loss_and_gradients_of_a_whole_one(one_gloo_rank: None) -> None:
    whole, sharded = decoder(), decoder()
    for module in (*sharded.model.layers, sharded):
        fully_shard(module, mp_policy=mixed_precision_policy())
    expected, found = step(whole), step(sharded)
    assert found.dtype == expected.dtype == torch.float32
    assert found != found.bfloat16(), "the loss has not been rounded"
    assert found.item() == pytest.approx(expected.item(), abs=2e-3)
    for (name, weight), shard in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        gradient = shard.grad.full_tensor()
        assert gradient.dtype == torch.float32
        # Weights are rounded before the norms and the sum of residuals, where autocast keeps them in float32.
        error = torch.linalg.vector_norm(gradient - weight.grad) / torch.linalg.vector_norm(weight.grad)
        assert error < 0.05, name


def test_the_number_of_labels_that_a_loss_is_divided_by_is_not_rounded(one_gloo_rank: None) -> None:
    model = decoder()
    for module in (*model.model.layers, model):
        fully_shard(module, mp_policy=mixed_precision_policy())
    # As the Trainer gives it: a tensor of a floating type. In bfloat16 it would be 32768.
    items = torch.tensor(32752.0)
    assert (step(model, items) * items / 254).item() == pytest.approx(step(model).item(), rel=1e-6)
