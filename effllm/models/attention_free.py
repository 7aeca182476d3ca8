"""The models of Table 6 by their shapes: Qwen2.5 and its attention-free or older rivals, in Transformers' own classes.

Parameter counts are not matched at the paper's shapes, so that rows print the real count; the `tiny` shapes are
within 10 % of each other at a vocabulary of 2,048.
"""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from effllm.errors import UserError


@dataclass(frozen=True)
class ReferenceShape:
    """Family (`model_type`) and what its configuration must be told; None leaves the family's own rule.

    Families: qwen2; mamba (d_model and layers); rwkv (version 4); gpt_neox, which is Pythia.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None

    def config(self, vocab_size: int, max_position_embeddings: int, **tokens: int | None) -> PreTrainedConfig:
        """The Transformers configuration; `tokens` are pad_token_id, bos_token_id and eos_token_id.

        Head and embedding are tied where the family ties them: Qwen2.5 and Mamba do, Pythia and RWKV do not.
        Raises UserError for a family that is none of those above, or without the heads it needs.
        """
        if self.model_type not in _SETTINGS:
            raise UserError(f"model_type {self.model_type} is none of {', '.join(_SETTINGS)}: choose one of them.")
        if self.model_type in _WITH_HEADS and self.num_attention_heads is None:
            raise UserError(f"model_type {self.model_type} needs num_attention_heads: give it.")
        return AutoConfig.for_model(
            self.model_type,
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            **_SETTINGS[self.model_type](self, max_position_embeddings),
            **tokens,
        )


def _qwen2(shape: ReferenceShape, length: int) -> dict[str, Any]:
    return {
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "max_position_embeddings": length,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    }


def _gpt_neox(shape: ReferenceShape, length: int) -> dict[str, Any]:
    return {
        "intermediate_size": shape.intermediate_size or 4 * shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "max_position_embeddings": length,
    }


def _mamba(shape: ReferenceShape, length: int) -> dict[str, Any]:
    return {}


def _rwkv(shape: ReferenceShape, length: int) -> dict[str, Any]:
    return {"intermediate_size": shape.intermediate_size, "context_length": length}


_SETTINGS = {"qwen2": _qwen2, "gpt_neox": _gpt_neox, "mamba": _mamba, "rwkv": _rwkv}
_WITH_HEADS = ("qwen2", "gpt_neox")

REFERENCE_SHAPES: dict[str, ReferenceShape] = {
    "qwen2.5-0.5b": ReferenceShape("qwen2", 896, 24, 14, 2, 4864),
    "qwen2.5-1.5b": ReferenceShape("qwen2", 1536, 28, 12, 2, 8960),
    "qwen2.5-3b": ReferenceShape("qwen2", 2048, 36, 16, 2, 11008),
    "mamba-0.5b": ReferenceShape("mamba", 768, 24),
    "mamba-1.5b": ReferenceShape("mamba", 1536, 48),
    "mamba-3b": ReferenceShape("mamba", 2560, 64),
    "pythia-0.5b": ReferenceShape("gpt_neox", 1024, 24, 16),
    "pythia-1.5b": ReferenceShape("gpt_neox", 2048, 32, 16),
    "pythia-3b": ReferenceShape("gpt_neox", 2560, 32, 32),
    "rwkv-0.5b": ReferenceShape("rwkv", 1024, 24),
    "rwkv-1.5b": ReferenceShape("rwkv", 2048, 32),
    "rwkv-3b": ReferenceShape("rwkv", 2560, 40),
    "qwen2.5-tiny": ReferenceShape("qwen2", 128, 4, 4, 2, 384),
    "mamba-tiny": ReferenceShape("mamba", 128, 7),
    "pythia-tiny": ReferenceShape("gpt_neox", 128, 3, 4),
    "rwkv-tiny": ReferenceShape("rwkv", 128, 3, intermediate_size=416),
}
