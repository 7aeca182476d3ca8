"""Bytes of weights on disk, and widths of packed layers, read from the headers of safetensors files."""

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

_BITS = {"BF16": 16, "F16": 16, "F32": 32, "I32": 32, "I64": 64, "U8": 8, "I8": 8, "I16": 16, "F64": 64, "BOOL": 8}
# What stands in a GPTQ checkpoint in place of one linear layer's `weight`.
_PACKED = ("qweight", "qzeros", "scales", "g_idx")


def weight_bytes(directory: Path) -> dict[str, Any]:
    """Bytes of all tensors below `directory`, and of the quantized layers against the same layers in 16 bits.

    `quantized_layers_bytes` counts packed weights, scales, zero points and group indices; the 16-bit figure is
    rows x columns x 2 bytes of the weights they stand for. Both are None where nothing is quantized.
    """
    tensors = _tensors(directory)
    layers = _packed_layers(tensors)
    parts = [tensors[f"{layer}.{kind}"] for layer in layers for kind in _PACKED]
    bytes_16_bit = sum(rows * columns * 2 for rows, columns in layers.values())
    return {
        "bytes": sum(_size(*tensor) for tensor in tensors.values()),
        "quantized_layers": len(layers),
        "quantized_layers_bytes": sum(_size(*part) for part in parts) if layers else None,
        "quantized_layers_bytes_16_bit": bytes_16_bit if layers else None,
    }


def packed_shapes(directory: Path) -> set[tuple[int, int]]:
    """Input and output widths of the packed layers of a GPTQ checkpoint."""
    return set(_packed_layers(_tensors(directory)).values())


def _tensors(directory: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type of every tensor, by name, over all shards."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                view = tensors.get_slice(name)
                found[name] = (view.get_shape(), view.get_dtype())
    return found


def _packed_layers(tensors: dict[str, tuple[list[int], str]]) -> dict[str, tuple[int, int]]:
    """Input and output width of each packed layer, by name."""
    shapes = {}
    for layer in (name.rpartition(".")[0] for name in tensors if name.endswith(".qweight")):
        (in_features,), _ = tensors[f"{layer}.g_idx"]
        # Scales are [groups, out_features].
        (_, out_features), _ = tensors[f"{layer}.scales"]
        shapes[layer] = (in_features, out_features)
    return shapes


def _size(shape: list[int], dtype: str) -> int:
    return math.prod(shape) * _BITS[dtype] // 8
