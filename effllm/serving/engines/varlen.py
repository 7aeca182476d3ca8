"""Attention of a batch of sequences of different lengths by PyTorch's own flash attention, for continuous batching.

By SDPA the library multiplies every token of the batch with the keys of all sequences, under a mask that leaves each
its own: work that grows with the square of the requests. Here a sequence meets its own keys alone, and heads of keys
that several queries share are not repeated for it.
"""

from typing import Any

import torch
from transformers import AttentionInterface

from effllm.errors import CellFailure

# The library gives no mask to what has "flash" in its name.
VARLEN = "varlen_flash"
_LARGEST_HEAD = 256


def use_varlen(model: Any) -> None:
    """Let a model attend so; `CellFailure` (unsupported) where the kernel does not run it."""
    heads = getattr(model.config.get_text_config(), "head_dim", None) or 0
    if model.device.type != "cuda" or model.dtype not in (torch.bfloat16, torch.float16) or heads > _LARGEST_HEAD:
        raise CellFailure(
            "unsupported",
            f"flash_attention varlen runs in 16 bits on an NVIDIA GPU, with heads of at most {_LARGEST_HEAD} numbers, "
            f"and this is {str(model.dtype).removeprefix('torch.')} on {model.device}",
        )
    AttentionInterface.register(VARLEN, attend)
    model.config._attn_implementation = VARLEN


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    scaling: float | None = None,
    **batch: Any,
) -> tuple[torch.Tensor, None]:
    """As Transformers asks for attention: [1, heads, tokens, d] of all sequences, whose lengths `batch` has."""
    # This puts the lengths of this layer's sequences into the place of those of all layers.
    key, value = batch["cache"].update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=batch)
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    ends, longest = (batch["cu_seq_lens_q"], batch["cu_seq_lens_k"]), (batch["max_length_q"], batch["max_length_k"])
    return _by_sequence(query, key, value, ends, longest, scaling).unsqueeze(0), None


def _by_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    scale: float | None,
) -> torch.Tensor:
    """[tokens, heads, d] of all sequences, which end where `ends` says, of queries and of keys.

    The last query of a sequence sees all of its keys, each one before it one fewer.
    """
    flash = torch.ops.aten._flash_attention_forward
    attended: torch.Tensor = flash(query, key, value, *ends, *longest, 0.0, True, False, scale=scale)[0]
    return attended
