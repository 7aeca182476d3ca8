"""FSDP2's arithmetic, on gloo ranks: Accelerate itself shards only where there is CUDA."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerControl

from effllm.diffusion.chain import DdpmObjective
from effllm.diffusion.settings import Ddpm
from effllm.models.decoder import EffConfig, EffForCausalLM
from effllm.models.dit import DiT, DiTConfig
from effllm.training.arguments import mixed_precision_policy
from effllm.training.ema import AVERAGE, MovingAverage


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


def test_a_sharded_step_of_a_diffusion_transformer_is_that_of_a_whole_one(one_gloo_rank: None) -> None:
    keys = {"image_size": 8, "channels": 3, "patch_size": 2, "classes": 5, "hidden_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    whole = DiT(DiTConfig(**keys, num_attention_heads=4)).train()
    for weight in whole.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    sharded = DiT(whole.config).train()
    sharded.load_state_dict(whole.state_dict())
    for module in (*sharded.layers, sharded):
        fully_shard(module, mp_policy=mixed_precision_policy())
    images, noise = torch.randn(2, 4, 3, 8, 8)
    losses = []
    for model in (whole, sharded):
        with torch.autocast("cpu", torch.bfloat16):
            objective = DdpmObjective(Ddpm(kind="ddpm"), learned_sigma=True)
            loss = model(images, torch.tensor([1, 400, 7, 999]), torch.arange(4), noise=noise, objective=objective)
        loss["loss"].backward()
        losses.append(loss["loss"].detach())
    assert losses[1].dtype == torch.float32 and losses[1].item() == pytest.approx(losses[0].item(), rel=0.01)
    for (name, weight), shard in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        gradient = shard.grad.full_tensor()
        error = torch.linalg.vector_norm(gradient - weight.grad) / torch.linalg.vector_norm(weight.grad)
        # A shift of all keys is nothing to softmax: that gradient is rounding alone.
        assert gradient.dtype == torch.float32 and (error < 0.05 or name.endswith("k_proj.bias")), name


def follow(average: MovingAverage, model: torch.nn.Module, directory: Path, steps: range, is_first: bool) -> None:
    """Weights that change by known factors, and the average over them; it begins behind the checkpoint, if any."""
    arguments, control = SimpleNamespace(output_dir=str(directory)), TrainerControl()
    state = SimpleNamespace(global_step=steps.start, is_world_process_zero=is_first)
    average.on_train_begin(arguments, state, control)
    for state.global_step in range(steps.start + 1, steps.stop + 1):
        for weight in model.parameters():
            weight.data.mul_(1 + state.global_step)
        average.on_step_end(arguments, state, control)
    if is_first:
        (directory / f"checkpoint-{steps.stop}").mkdir()
    average.on_save(arguments, state, control)


def layers() -> torch.nn.Module:
    """Weights that two ranks cannot halve, and one that the second rank has nothing of."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))


def follow_sharded(rank: int, directory: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=2)
    for steps in (range(2), range(2, 3)):
        model = layers()
        if steps.start:
            for weight in model.parameters():
                weight.data.mul_(2 * 3)
        average = MovingAverage(model, 0.9, directory, is_sharded=True)
        fully_shard(model)
        follow(average, model, directory, steps, rank == 0)
        distributed.barrier()  # The second rank does not go on from a file that the first one is still writing.
    distributed.destroy_process_group()


def test_the_moving_average_of_two_ranks_is_that_of_one_and_goes_on_from_its_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=follow_sharded, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    (tmp_path / "one").mkdir()
    model = layers()
    follow(MovingAverage(model, 0.9, tmp_path), model, tmp_path / "one", range(3), is_first=True)
    expected, found = (load_file(path / "checkpoint-3" / AVERAGE) for path in (tmp_path / "one", tmp_path))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_moving_average_of_shards_is_that_of_whole_weights_and_goes_on_from_its_file(
    one_gloo_rank: None, tmp_path: Path
) -> None:
    arguments, control = SimpleNamespace(output_dir=str(tmp_path)), TrainerControl()
    averages, models = [], (decoder(), decoder())
    for name, model in zip(("whole", "sharded"), models, strict=True):
        is_sharded = name == "sharded"
        average = MovingAverage(model, 0.9, tmp_path / name, is_sharded)
        if is_sharded:
            for module in (*model.model.layers, model):
                fully_shard(module)
        average.on_train_begin(arguments, SimpleNamespace(global_step=0, is_world_process_zero=True), control)
        for step in (1, 2, 3):
            state = SimpleNamespace(global_step=step, is_world_process_zero=True)
            for weight in model.parameters():
                weight.data.mul_(1 + step)
            average.on_step_end(arguments, state, control)
            if step == 2:
                (tmp_path / "checkpoint-2").mkdir(exist_ok=True)
                average.on_save(arguments, state, control)
                average = MovingAverage(model, 0.9, tmp_path / name, is_sharded)
                average.on_train_begin(arguments, state, control)
        (tmp_path / name).mkdir()
        average.on_train_end(arguments, state, control)
        averages.append(load_file(tmp_path / name / AVERAGE))
    assert isinstance(next(models[1].parameters()), DTensor)
    torch.testing.assert_close(*averages, rtol=0, atol=0)
    assert not torch.equal(next(iter(averages[0].values())), next(models[0].parameters()).detach())


def test_the_number_of_labels_that_a_loss_is_divided_by_is_not_rounded(one_gloo_rank: None) -> None:
    model = decoder()
    for module in (*model.model.layers, model):
        fully_shard(module, mp_policy=mixed_precision_policy())
    # As the Trainer gives it: a tensor of a floating type. In bfloat16 it would be 32768.
    items = torch.tensor(32752.0)
    assert (step(model, items) * items / 254).item() == pytest.approx(step(model).item(), rel=1e-6)
