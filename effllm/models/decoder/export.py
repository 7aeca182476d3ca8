"""Export to the formats of Transformers, so that a checkpoint loads and runs without this package.

| decoder                        | format                                                        |
|--------------------------------|---------------------------------------------------------------|
| MHA, GQA, MQA; RoPE; SwiGLU    | Qwen2                                                         |
| MHA, GQA, MQA; RoPE; MoE       | Qwen2-MoE with a shared expert of width 0                     |
| MLA; RoPE; SwiGLU              | DeepSeek-V3 with dense layers only and rotary halves, not pairs |

Each part names its own keys there. Mixtral would fit the experts, but it has no bias on queries, keys and values.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from effllm.errors import UserError
from effllm.models.decoder.architecture import transformers_type
from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.config import EffConfig
from effllm.models.decoder.feed_forward import FEED_FORWARD
from effllm.models.decoder.model import EffForCausalLM
from effllm.models.decoder.positions import POSITIONS


def export_format(config: EffConfig) -> str | None:
    """The `model_type` under which Transformers knows this decoder, or None if it knows none."""
    return transformers_type(config)


def export_config(config: EffConfig) -> PreTrainedConfig:
    """The configuration of the same model in Transformers' own terms; raises UserError where there are none."""
    model_type = export_format(config)
    if model_type is None:
        raise UserError(
            f"attention {config.attention} with position {config.position} and feed_forward {config.feed_forward} has "
            "no format in Transformers: keep the checkpoint as it is, and import EffForCausalLM from "
            "effllm.models.decoder to load it."
        )
    shared = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings rms_norm_eps initializer_range tie_word_embeddings pad_token_id bos_token_id "
        "eos_token_id dtype"
    )
    parts = (ATTENTION[config.attention], POSITIONS[config.position], FEED_FORWARD[config.feed_forward])
    own = {key: value for part in parts for key, value in (part.transformers_keys(config) or {}).items()}
    return AutoConfig.for_model(model_type, **{key: getattr(config, key) for key in shared.split()}, **own)


def to_transformers(model: EffForCausalLM) -> PreTrainedModel:
    """The same function as a model of Transformers' own class, its weights copied; raises UserError as above."""
    config = export_config(model.config)
    target = AutoModelForCausalLM.from_config(config).to(model.dtype)
    is_absent = FEED_FORWARD[model.config.feed_forward].is_absent
    absent = {name: torch.zeros_like(weight) for name, weight in target.state_dict().items() if is_absent(name)}
    # Our parameters have Transformers' names.
    target.load_state_dict(model.state_dict() | absent)
    target.generation_config = model.generation_config
    return target.train(model.training)


def export(model: EffForCausalLM, directory: Path) -> None:
    """Write config.json and safetensors that `AutoModelForCausalLM.from_pretrained` loads, without a tokenizer."""
    to_transformers(model).save_pretrained(directory)
