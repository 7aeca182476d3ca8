"""Small models of every family that is fine-tuned, and methods by kind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from effllm.models.decoder import EffConfig
from effllm.study.methods import Method

VOCABULARY = 97
_SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3}
_DECODER = {
    **_SHAPE,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_EFFLLM = {**_DECODER, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "kv_lora_rank": 8}
_OWN = {
    "gqa": {},
    "mla": {"attention": "mla", "num_key_value_heads": None},
    "learned": {"position": "learned"},
    "moe": {"feed_forward": "moe", "num_experts": 4, "moe_intermediate_size": 24},
}


def small_model(family: str) -> PreTrainedModel:
    """A three-layer model with fixed weights, large enough that every layer shows: `qwen2`, `effllm-mla`, ..."""
    torch.manual_seed(0)
    if family.startswith("effllm"):
        config: Any = EffConfig(**(_EFFLLM | _OWN[family.removeprefix("effllm-")]), initializer_range=0.2)
    elif family in ("mamba", "rwkv"):
        config = AutoConfig.for_model(family, **_SHAPE)
    else:
        tied = {"tie_word_embeddings": family == "qwen2"}
        # Phi3's padding token lies beyond this vocabulary.
        config = AutoConfig.for_model(family, **_DECODER, **tied, initializer_range=0.2, pad_token_id=0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def method() -> Callable[..., Any]:
    """Settings of a method: `method("lora", rank=4)`; low-rank ones have rank 4 and alpha 12 unless given."""

    def make(kind: str, **settings: Any) -> Any:
        low_rank = {"rank": 4, "alpha": 12} if kind not in ("freeze", "full") else {}
        return TypeAdapter(Method).validate_python({"kind": kind} | low_rank | settings)

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """[2, 17] tokens without padding."""
    return torch.randint(1, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))
