"""Mamba and RWKV of Transformers by fused kernels, where the packages that hold them can be imported.

Mamba's are mamba-ssm's and causal-conv1d's: Transformers takes them wherever they import, and its own scan otherwise.
RWKV-4's is flash-linear-attention's (fla-core), in place of Transformers' loop over the tokens.
"""

import inspect
import unittest.mock
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from effllm.models.decoder.kernels.choice import failing_as_a_cell, has_package, is_fused

_MAMBA = "transformers.models.mamba.modeling_mamba"
_MAMBA_FUNCTIONS = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_inner_fn",
    "mamba_selective_scan",
    "mamba_selective_state_update",
)
_RWKV = "transformers.models.rwkv.modeling_rwkv"


@contextmanager
def recurrent_kernels(model: nn.Module) -> Iterator[None]:
    """While the block runs, Mamba and RWKV go the way that `choice.choosing` asks for; other models are left alone."""
    family = getattr(getattr(model, "config", None), "model_type", None)
    with ExitStack() as patches:
        if family == "mamba" and not is_fused("mamba", _objection("mamba_ssm", "causal_conv1d", is_repeatable=False)):
            module = __import__(_MAMBA, fromlist=["_"])
            for name in _MAMBA_FUNCTIONS:
                plain = inspect.unwrap(getattr(module, name))
                patches.enter_context(unittest.mock.patch(f"{_MAMBA}.{name}", plain))
        if family == "rwkv" and is_fused("rwkv", _objection("fla.ops.rwkv4", is_repeatable=True)):
            patches.enter_context(unittest.mock.patch(f"{_RWKV}.rwkv_linear_attention", _linear_attention))
        yield


def _objection(*packages: str, is_repeatable: bool) -> str | None:
    if not torch.cuda.is_available():
        return "it needs CUDA"
    if not is_repeatable and torch.are_deterministic_algorithms_enabled():
        return "its backward pass adds up in another order each time, and the run is deterministic"
    missing = [name for name in packages if not has_package(name)]
    return f"{missing[0]} cannot be imported" if missing else None


@failing_as_a_cell("of RWKV")
def _linear_attention(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    state: tuple[Tensor, ...] | None = None,
    return_state: bool = False,
) -> tuple[Tensor, list[Tensor] | None]:
    """What Transformers' `rwkv_linear_attention` gives, key and value [batch, length, hidden].

    The kernel keeps its states in the key's type, which is therefore float32.
    """
    from fla.ops.rwkv4 import fused_recurrent_rwkv4

    if state is None:
        start = key.new_zeros((key.shape[0], 3, 1, key.shape[2]), dtype=torch.float32)
        start[:, 2] = -1e38
    else:
        start = torch.stack([part.float() for part in state], dim=1)[:, :, None]
    output, last = fused_recurrent_rwkv4(time_decay, time_first.float(), key.float(), value.float(), start)
    after = list(last[:, :, 0].unbind(dim=1)) if return_state or state is not None else None
    return output.to(key.dtype), after
