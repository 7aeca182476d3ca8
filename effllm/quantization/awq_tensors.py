"""How an AWQ checkpoint of format gemm stores its layers. Nothing here imports torch."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from effllm.quantization.precision import PackedLayer

if TYPE_CHECKING:
    from effllm.models.checkpoint.headers import TensorHeader

# The tensors of a quantized layer, in place of its `weight`.
_TENSORS = ("qweight", "qzeros", "scales")


def packed_widths(tensors: "Mapping[str, TensorHeader]") -> dict[str, tuple[int, int]]:
    """Input and output widths of the packed layers, by name: qweight is [in, out / 8], scales [groups, out]."""
    layers = (name.rpartition(".")[0] for name in tensors if name.endswith(".qweight"))
    return {layer: (tensors[f"{layer}.qweight"].shape[0], tensors[f"{layer}.scales"].shape[1]) for layer in layers}


def packed_layers(tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
    """The same layers, and the tensors that each is made of."""
    return {
        layer: PackedLayer(math.prod(widths), tuple(f"{layer}.{kind}" for kind in _TENSORS))
        for layer, widths in packed_widths(tensors).items()
    }
