"""Small models of every family that is fine-tuned."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from effllm.models.decoder import EffConfig

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
    elif family in ("mamba", "mamba2", "rwkv"):
        heads = {"num_heads": 8, "head_dim": 8, "state_size": 8} if family == "mamba2" else {}
        config = AutoConfig.for_model(family, **_SHAPE, **heads)
    else:
        tied = {"tie_word_embeddings": family == "qwen2"}
        # Phi3's padding token lies beyond this vocabulary.
        config = AutoConfig.for_model(family, **_DECODER, **tied, initializer_range=0.2, pad_token_id=0)
    return AutoModelForCausalLM.from_config(config).eval()
