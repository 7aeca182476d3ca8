"""Parameters, FLOPs and bytes of a diffusion transformer, by the conventions of `effllm.models.costs`.

FLOPs are 2 per multiply-add; the "Gflops" that the paper of DiT publishes are multiply-adds, half as many.
"""

from typing import TYPE_CHECKING, Any

from effllm.models.costs import ParameterCount
from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.feed_forward import FEED_FORWARD
from effllm.models.dit.architecture import side

if TYPE_CHECKING:
    import torch

_TIME_FEATURES = 256


def parameter_count(shape: Any) -> ParameterCount:
    """Parameters of a filled-in shape; active are those that one patch of an image uses."""
    width = shape.hidden_size
    attention, feed_forward = _parts(shape)
    # The bias of attention's output, and the modulation of a block.
    extra = width + 6 * width * (width + 1)
    ends = _patch(shape) * width + width + _TIME_FEATURES * width + width + width * (width + 1)
    ends += 2 * width * (width + 1) + (width + 1) * _output(shape)
    labels = (shape.classes + 1) * width
    layers = shape.num_hidden_layers
    return ParameterCount(
        total=ends + labels + layers * (attention.parameters + feed_forward.parameters + extra),
        active=ends + labels + layers * (attention.active_parameters + feed_forward.active_parameters + extra),
        embedding=labels,
    )


def forward_flops(shape: Any) -> int:
    """FLOPs of the forward pass over one image at one timestep."""
    width, tokens = shape.hidden_size, side(shape) ** 2
    attention, feed_forward = _parts(shape)
    layer = 2 * tokens * (attention.matmul_parameters + feed_forward.matmul_parameters) + 12 * width**2
    layer += ATTENTION[shape.attention].flops_without_causality(shape, tokens)
    ends = 2 * tokens * width * (_patch(shape) + _output(shape)) + 2 * width * (_TIME_FEATURES + 3 * width)
    return shape.num_hidden_layers * layer + ends


def training_flops(shape: Any) -> int:
    """FLOPs of forward and backward over one image."""
    return 3 * forward_flops(shape)


def activation_bytes(shape: Any, batch_size: int, dtype: "torch.dtype", checkpointing: bool = False) -> int:
    """Bytes that the forward pass keeps for the backward pass, an estimate by the terms of the decoder's parts."""
    width, tokens = shape.hidden_size, batch_size * side(shape) ** 2
    attention, feed_forward = _parts(shape)
    # Of each half: the residual in float32 and its norm, the modulated norm, the update before its gate.
    kept = tokens * (2 * (2 * 4 + 3 * dtype.itemsize) * width)
    kept += tokens * (attention.saved_elements + feed_forward.saved_elements) * dtype.itemsize
    if not checkpointing:
        return int(shape.num_hidden_layers * kept)
    return int(kept + shape.num_hidden_layers * tokens * width * 4)


def _parts(shape: Any) -> tuple[Any, Any]:
    return ATTENTION[shape.attention].cost(shape), FEED_FORWARD[shape.feed_forward].cost(shape)


def _patch(shape: Any) -> int:
    return shape.channels * shape.patch_size**2


def _output(shape: Any) -> int:
    return _patch(shape) * (2 if shape.learned_sigma else 1)
