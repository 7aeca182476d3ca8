"""Export to the formats of Transformers, so that a checkpoint loads and runs without this package.

| decoder                        | format                                                        |
|--------------------------------|---------------------------------------------------------------|
| MHA, GQA, MQA; RoPE; SwiGLU    | Qwen2                                                         |
| MHA, GQA, MQA; RoPE; MoE       | Qwen2-MoE with a shared expert of width 0                     |
| MLA; RoPE; SwiGLU              | DeepSeek-V3 with dense layers only and rotary halves, not pairs |

Mixtral would fit the experts, but it has no bias on queries, keys and values.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from effllm.errors import UserError
from effllm.models.decoder.config import EffConfig
from effllm.models.decoder.model import EffForCausalLM
from effllm.study.decoder_shape import saved_model_type


def export_format(config: EffConfig) -> str | None:
    """The `model_type` under which Transformers knows this decoder, or None if it knows none."""
    return saved_model_type(config.attention, config.position, config.feed_forward)


def export_config(config: EffConfig) -> PreTrainedConfig:
    """The configuration of the same model in Transformers' own terms; raises UserError where there are none."""
    model_type = export_format(config)
    if model_type is None:
        raise UserError(
            f"attention {config.attention} with position {config.position} and feed_forward {config.feed_forward} has "
            "no format in Transformers: keep the checkpoint as it is, and import effllm.models.decoder to load it."
        )
    specific = {"qwen2": _grouped, "qwen2_moe": _mixture, "deepseek_v3": _latent}[model_type](config)
    shared = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings rms_norm_eps initializer_range tie_word_embeddings pad_token_id bos_token_id "
        "eos_token_id dtype"
    )
    return AutoConfig.for_model(
        model_type,
        **{key: getattr(config, key) for key in shared.split()},
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        **specific,
    )


def to_transformers(model: EffForCausalLM) -> PreTrainedModel:
    """The same function as a model of Transformers' own class, its weights copied; raises UserError as above."""
    config = export_config(model.config)
    target = AutoModelForCausalLM.from_config(config).to(model.dtype)
    # Our parameters have Transformers' names.
    target.load_state_dict(model.state_dict() | _absent_shared_experts(target.state_dict()))
    target.generation_config = model.generation_config
    return target.train(model.training)


def export(model: EffForCausalLM, directory: Path) -> None:
    """Write config.json and safetensors that `AutoModelForCausalLM.from_pretrained` loads, without a tokenizer."""
    to_transformers(model).save_pretrained(directory)


def _grouped(config: EffConfig) -> dict[str, Any]:
    # Qwen2 computes head_dim unless the key is there.
    usual = config.head_dim == config.hidden_size // config.num_attention_heads
    return {} if usual else {"head_dim": config.head_dim}


def _mixture(config: EffConfig) -> dict[str, Any]:
    return _grouped(config) | {
        "moe_intermediate_size": config.moe_intermediate_size,
        "shared_expert_intermediate_size": 0,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "norm_topk_prob": True,
        # Qwen2-MoE computes its balancing loss wherever the routers' logits are asked for, also in decoding, and with a
        # mask of the whole sequence for the one new token: who trains the model asks for them.
        "router_aux_loss_coef": config.router_aux_loss_coef,
        "output_router_logits": False,
    }


def _latent(config: EffConfig) -> dict[str, Any]:
    return {
        "kv_lora_rank": config.kv_lora_rank,
        "q_lora_rank": None,
        "qk_nope_head_dim": config.qk_nope_head_dim,
        "qk_rope_head_dim": config.qk_rope_head_dim,
        "v_head_dim": config.v_head_dim,
        "rope_interleave": False,
        "first_k_dense_replace": config.num_hidden_layers,
        "num_mtp_layers": 0,
    }


def _absent_shared_experts(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Qwen2-MoE adds a shared expert to the routed ones; ours has no width, and its gate is then without effect."""
    return {name: torch.zeros_like(weight) for name, weight in weights.items() if ".shared_expert" in name}
