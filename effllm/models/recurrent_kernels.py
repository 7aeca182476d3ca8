"""Mamba, Mamba-2 and RWKV of Transformers by fused kernels, where the packages that hold them can be imported.

Those of both Mambas are mamba-ssm's and causal-conv1d's: Transformers takes each function that can be imported, when it
is imported itself, and its own in place of the rest. The plain way is its own for all of them.
RWKV-4's is flash-linear-attention's (fla-core), in place of Transformers' loop over the tokens.
"""

import inspect
import sys
import unittest.mock
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from effllm.models.decoder.kernels.choice import absence_of, failing_as_a_cell, is_fused

_CONVOLUTION = ("causal_conv1d_fn", "causal_conv1d_update")
# Modules, and the packages that they are in.
_OF_CONVOLUTION = {"causal_conv1d": "causal-conv1d"}
_MAMBA_FUNCTIONS = {
    "mamba": (*_CONVOLUTION, "mamba_inner_fn", "mamba_selective_scan", "mamba_selective_state_update"),
    "mamba2": (
        *_CONVOLUTION,
        "mamba2_split_conv1d_scan_combined",
        "mamba2_chunk_scan",
        "mamba2_selective_state_update",
    ),
}
# The convolution's kernels read rows whose starts are multiples of this many numbers.
_ROW_MULTIPLE = 8
_RWKV = "transformers.models.rwkv.modeling_rwkv"


@contextmanager
def recurrent_kernels(model: nn.Module) -> Iterator[None]:
    """While the block runs, Mamba and RWKV go the way that `choice.choosing` asks for; other models are left alone."""
    family = getattr(getattr(model, "config", None), "model_type", None)
    with ExitStack() as patches:
        if family in _MAMBA_FUNCTIONS and not is_fused(family, _objection_to_mamba(family, model)):
            module = sys.modules[type(model).__module__]
            for name in _MAMBA_FUNCTIONS[family]:
                patches.enter_context(unittest.mock.patch.object(module, name, inspect.unwrap(getattr(module, name))))
        if family == "rwkv" and is_fused("rwkv", _objection({"fla.ops.rwkv4": "fla-core"}, is_repeatable=True)):
            patches.enter_context(unittest.mock.patch(f"{_RWKV}.rwkv_linear_attention", _linear_attention))
        yield


def _objection_to_mamba(family: str, model: nn.Module) -> str | None:
    if family == "mamba":
        return _objection({"mamba_ssm": "mamba-ssm"} | _OF_CONVOLUTION, is_repeatable=False)
    # These kernels, and the convolution's, add up in one order when torch is told to be deterministic.
    objection = _objection({"mamba_ssm.ops.triton.ssd_combined": "mamba-ssm"} | _OF_CONVOLUTION, is_repeatable=True)
    width = next(layer.out_features for name, layer in model.named_modules() if name.endswith("in_proj"))
    if objection is None and width % _ROW_MULTIPLE:
        return f"it takes input projections whose width is a multiple of {_ROW_MULTIPLE}, not {width}"
    return objection


def _objection(packages: Mapping[str, str], is_repeatable: bool) -> str | None:
    if not torch.cuda.is_available():
        return "it needs CUDA"
    if not is_repeatable and torch.are_deterministic_algorithms_enabled():
        return "its backward pass adds up in another order each time, and the run is deterministic"
    absences = [absence_of(module, package) for module, package in packages.items()]
    return next(filter(None, absences), None)


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
