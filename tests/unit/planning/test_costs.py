"""What a plan computes against what torch, peft and the stages really make."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import StaticCache

from effllm.stages import STAGES
from effllm.stages.cost import NodeContext
from effllm.stages.training import training_state_b
from effllm.stages.weights import precision_b
from effllm.training.methods import AnyMethod
from effllm.training.settings import Parallel
from effllm.training.suites import FinetuningRun

SINGLE = Parallel()
RUN = {
    "encoding": {"sequence_length": 64},
    "samples_per_step": 4,
    "max_steps": 8,
    "checkpoint_every_steps": 10,
    "learning_rate": 1e-4,
    "micro_batch_size": 2,
    "parallel": {"strategy": "single"},
}


def test_training_state_is_what_torch_holds_after_a_step(small_model: torch.nn.Module) -> None:
    optimizer = torch.optim.AdamW(small_model.parameters())
    ids = torch.zeros(1, 8, dtype=torch.long)
    small_model(ids, labels=ids).loss.backward()
    optimizer.step()
    tensors = [*small_model.parameters(), *(p.grad for p in small_model.parameters())]
    tensors += [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    held_b = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert training_state_b(small_model.num_parameters(), 0, SINGLE, "float32") == held_b


def test_shards_are_divided_by_the_ranks_and_offloaded_parts_are_elsewhere() -> None:
    def state_b(**parallel: Any) -> float:
        return training_state_b(1000, 0, Parallel(devices=4, **parallel), "float32")

    assert state_b(strategy="ddp") == 16_000
    assert state_b(strategy="fsdp2") == state_b(strategy="zero3") == 4_000
    assert state_b(strategy="zero2") == 4_000 + 12_000 / 4
    assert state_b(strategy="zero3", offload=True) == 1_000


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "full"},
        {"kind": "freeze", "frozen_layers": 2},
        {"kind": "lora", "rank": 8, "alpha": 16},
        {"kind": "dora", "rank": 4, "alpha": 16},
        {"kind": "rslora", "rank": 16, "alpha": 16},
    ],
)
def test_trained_parameters_are_those_that_the_method_trains(
    small_model: torch.nn.Module, method: dict[str, Any]
) -> None:
    config = small_model.config
    settings = TypeAdapter(AnyMethod).validate_python(method)
    prepared = settings.apply(small_model, "methods.x")
    trained = sum(parameter.numel() for parameter in prepared.model.parameters() if parameter.requires_grad)
    assert settings.trained_parameters(config) == trained


def test_an_adapter_on_chosen_layers_has_no_count(small_model: torch.nn.Module) -> None:
    method = {"kind": "lora", "rank": 8, "alpha": 16, "target_modules": ["q_proj"]}
    run = FinetuningRun.model_validate(RUN | {"method": method})
    assert run.method.trained_parameters(small_model.config) is None


def test_weights_of_16_bits_are_two_bytes_each(small_model: torch.nn.Module) -> None:
    small_model = small_model.to(torch.bfloat16)
    held_b = sum(parameter.numel() * parameter.element_size() for parameter in small_model.parameters())
    assert precision_b(small_model.config, {"kind": "cast", "dtype": "bfloat16"}) == held_b


def test_scores_of_other_numbers_of_documents_are_no_measure_of_each_other(small_model: torch.nn.Module) -> None:
    def kind(**benchmark: int | None) -> str:
        configs = {"model": {"precision": {"kind": "cast", "dtype": "bfloat16"}}, "benchmark": {"benchmark": benchmark}}
        config = {"protocol": {"batch_size": 8}}
        node = NodeContext("m.bf.b", config, lambda: small_model.config, configs.get, lambda _: "b")
        return str(STAGES["evaluate"].cost(node).kind)

    assert len({kind(limit=10), kind(limit=100), kind(limit=None), kind(items=20)}) == 4
    assert kind(limit=10).startswith("b in cast bfloat16, 10 documents, ")


def test_a_profile_holds_the_largest_cache_of_its_workloads(small_model: torch.nn.Module) -> None:
    def memory_b(**workloads: dict[str, Any]) -> float:
        config = {**protocol, "workloads": workloads}
        node = NodeContext(
            "m.bf", config, lambda: small_model.config, lambda _: {"precision": precision}, lambda _: None
        )
        return STAGES["profile"].cost(node).memory_b

    def cache_b(length: int) -> int:
        cache = StaticCache(config=small_model.config, max_cache_len=length)
        small_model.bfloat16()(torch.zeros(1, 2, dtype=torch.long), past_key_values=cache)
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    protocol = {"idle_s": 1, "warmup_maximum": 3, "repeats": 2, "minimum_window_s": 1, "cooldown_s": 0}
    protocol["maximum_relative_interval"] = 0.1
    precision = {"kind": "cast", "dtype": "bfloat16"}
    long, short = {"prompt_tokens": 12, "new_tokens": 4}, {"prompt_tokens": 4, "new_tokens": 4}
    assert memory_b(long=long) - memory_b(short=short) == cache_b(16) - cache_b(8)
    assert memory_b(long=long, short=short) == memory_b(long=long)
    # Graphs are recorded when the others are done, one workload after the other.
    assert memory_b(long=long, graph=long | {"cuda_graph": True}) == memory_b(long=long)
