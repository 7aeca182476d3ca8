"""How a GPTQ checkpoint stores its layers. Nothing here imports torch."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from effllm.quantization.precision import PackedLayer

if TYPE_CHECKING:
    from effllm.models.checkpoint.headers import TensorHeader

WORD_BITS = 32
"""Bits of the integers that weights are packed into along the input, and zero points along the output."""

# The tensors of a quantized layer, in place of its `weight`.
_TENSORS = ("qweight", "qzeros", "scales", "g_idx")


def packed_widths(tensors: "Mapping[str, TensorHeader]") -> dict[str, tuple[int, int]]:
    """Input and output widths of the packed layers among the tensors of a GPTQ checkpoint, by name."""
    widths = {}
    for layer in (name.rpartition(".")[0] for name in tensors if name.endswith(".qweight")):
        (in_features,) = tensors[f"{layer}.g_idx"].shape
        # Scales are [groups, out_features].
        _, out_features = tensors[f"{layer}.scales"].shape
        widths[layer] = in_features, out_features
    return widths


def packed_layers(tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
    """The same layers, and the tensors that each is made of."""
    return {
        layer: PackedLayer(math.prod(widths), tuple(f"{layer}.{kind}" for kind in _TENSORS))
        for layer, widths in packed_widths(tensors).items()
    }
