"""Model FLOPs of every method against the products that torch counts in a step of the prepared model."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.training.methods import AnyMethod

LENGTH = 96
LAYERS = 12
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LOW_RANK = {"rank": 8, "alpha": 16}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"kind": "lora", **LOW_RANK}, {}),
    "lora_plus": ({"kind": "lora_plus", **LOW_RANK}, {}),
    "rslora": ({"kind": "rslora", **LOW_RANK}, {}),
    "pissa": ({"kind": "pissa", **LOW_RANK}, {}),
    "loha": ({"kind": "loha", "rank": 8}, {}),
    "lokr": ({"kind": "lokr", "rank": 2}, {}),
    "glora": ({"kind": "glora", "rank": 8}, {}),
    "glora, biases": ({"kind": "glora", "rank": 8}, {"attention_bias": True, "mlp_bias": True}),
    "some layers": ({"kind": "lora", **LOW_RANK, "target_modules": ["q_proj", "down_proj"]}, {}),
    "freeze, a head of its own": ({"kind": "freeze", "frozen_layers": 4}, {"tie_word_embeddings": False}),
    "freeze, a tied head": ({"kind": "freeze", "frozen_layers": 4}, {"tie_word_embeddings": True}),
    "full": ({"kind": "full"}, {}),
}


def counted_and_stated(method: dict[str, Any], changes: dict[str, Any]) -> tuple[int, int]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE | changes, pad_token_id=0))
    settings = TypeAdapter(AnyMethod).validate_python(method)
    prepared = settings.apply(model, "methods.x").model.train()
    tokens = torch.randint(1, SHAPE["vocab_size"], (1, LENGTH))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        prepared(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    return counter.get_total_flops(), settings.sequence_flops(prepared, LENGTH) + settings.pass_flops(prepared)


@pytest.mark.parametrize("case", CASES)
def test_flops_of_a_step_are_those_that_torch_counts(case: str) -> None:
    counted, stated = counted_and_stated(*CASES[case])
    # Stated, not done: the gradient of the first trained layer's inputs, a 24th of the backward pass's at most.
    assert counted <= stated <= 1.02 * counted


def test_dora_does_what_lora_does_and_the_norm_of_its_weights() -> None:
    """peft multiplies B and A by the identity to have the norm: n (n + m) r multiply-adds for a layer of n by m."""
    lora, stated_of_lora = counted_and_stated({"kind": "lora", **LOW_RANK}, {})
    dora, stated = counted_and_stated({"kind": "dora", **LOW_RANK}, {})
    assert stated == stated_of_lora
    inputs_outputs = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 160), (64, 160), (160, 64)]
    norms = sum(2 * n * (n + m) * LOW_RANK["rank"] for n, m in inputs_outputs) * LAYERS
    assert dora - lora == pytest.approx(norms, rel=0.01)
