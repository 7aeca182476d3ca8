"""Attention of Qwen's vision towers, in which an image is cut into windows: all of one length at once.

Transformers calls the kernel for each window of each image and layer, some ten thousand times for a batch of large
images, and what that costs the host is many times what the device computes.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

# By the word "flash" in it the towers hand over all windows together, with the places where they end.
_NAME = "effllm_flash_windows"
_TOWERS = ("qwen2_5_vl", "qwen2_vl")
_Group = tuple[int, Tensor]


def attend_by_windows(model: PreTrainedModel) -> None:
    """Let a tower that attends by SDPA in windows do so for all of one length at once; other models stay."""
    if model.config.model_type in _TOWERS:
        settings: Any = model.config.vision_config
        if settings._attn_implementation == "sdpa":
            settings._attn_implementation = _NAME


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Context [1, T, H, D] of query, key and value [1, H, T, D] within windows that end where the bounds say."""
    parts = [tensor[0] for tensor in (query, key, value)]
    groups = _groups(cu_seq_lens_q)
    contexts = []
    for length, places in groups:
        # Of one group, which has all tokens in their order, nothing is copied.
        chosen = parts if len(groups) == 1 else [part[:, places] for part in parts]
        q, k, v = (part.unflatten(1, (-1, length)).transpose(0, 1) for part in chosen)
        context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        contexts.append(context.transpose(1, 2).flatten(0, 1))
    if len(contexts) == 1:
        return contexts[0][None], None
    order = torch.cat([places for _, places in groups]).argsort()
    return torch.cat(contexts)[order][None], None


def _groups(bounds: Tensor) -> list[_Group]:
    """The lengths that windows have, each with the places of their tokens; noted at the bounds, which layers share."""
    known: list[_Group] | None = getattr(bounds, "effllm_groups", None)
    if known is None:
        ends = bounds.tolist()
        by_length: dict[int, list[int]] = {}
        for start, end in pairwise(ends):
            if end > start:
                by_length.setdefault(end - start, []).extend(range(start, end))
        known = [(length, torch.tensor(places, device=bounds.device)) for length, places in by_length.items()]
        bounds.effllm_groups = known  # type: ignore[attr-defined]
    return known


AttentionInterface.register(_NAME, _attend)
