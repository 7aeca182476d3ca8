"""How torchao keeps quantized weights: tensors of a class of their own, and by which product each runs.

Imports of torchao are inside functions: it takes seconds.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.quantization.precision import PackedLayer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from effllm.models.checkpoint.headers import TensorHeader
    from effllm.quantization.precision import Precision

_DATA = "._weight_qdata"


def quantize_with_torchao(source: Path, target: Path, precision: "Precision", dtype: str, settings: Any) -> None:
    """Quantize the model in `source` into `target` by torchao's `settings`; the rest is in `dtype`."""
    import torch
    from transformers import TorchAoConfig

    from effllm.quantization.by_loading import quantize_by_loading

    quantize_by_loading(source, target, precision, getattr(torch, dtype), TorchAoConfig(settings), is_packed)


def is_packed(module: "nn.Module") -> bool:
    """Whether a layer's weight is one of torchao's tensors."""
    from torchao.utils import TorchAOBaseTensor

    return isinstance(getattr(module, "weight", None), TorchAOBaseTensor)


def packed_layers(tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
    """The quantized layers among the tensors of a checkpoint of torchao's, by name: an element is a weight."""
    return {
        layer: PackedLayer(
            math.prod(tensors[f"{layer}{_DATA}"].shape),
            tuple(name for name in tensors if name.startswith(f"{layer}._weight_")),
        )
        for layer in (name.removesuffix(_DATA) for name in tensors if name.endswith(_DATA))
    }


def kernel_of(model: "PreTrainedModel", product: str) -> str | None:
    """The class of the quantized weights and the product that it runs by; None where none is quantized."""
    found = sorted({type(module.weight).__name__ for module in model.modules() if is_packed(module)})
    return ", ".join(f"torchao {name} ({product})" for name in found) or None
