"""Bytes of weights on disk, read from the headers of safetensors files."""

import math
from pathlib import Path

from effllm.models.checkpoint.headers import TensorHeader, read_headers
from effllm.quantization.precision import Precision
from effllm.results.quantization import WeightBytes


def weight_bytes(directory: Path, precision: Precision) -> WeightBytes:
    """Bytes of all tensors below `directory`, and of the quantized layers against the same layers in 16 bits.

    `quantized_layers_bytes` counts all tensors of a quantized layer; the 16-bit figure is rows x columns x 2 bytes of
    the matrix that they encode. Both are None where nothing is quantized.
    """
    tensors = tensor_headers(directory)
    layers = precision.packed_layers(tensors).values()
    parts = [tensors[name] for layer in layers for name in layer.tensors]
    bytes_16_bit = sum(2 * layer.weights for layer in layers)
    return WeightBytes(
        bytes=sum(tensor.bytes for tensor in tensors.values()),
        quantized_layers=len(layers),
        quantized_layers_bytes=sum(part.bytes for part in parts) if layers else None,
        quantized_layers_bytes_16_bit=bytes_16_bit if layers else None,
    )


def parameter_count(directory: Path) -> int:
    """Parameters of an unquantized checkpoint, tied ones once."""
    return sum(math.prod(tensor.shape) for tensor in tensor_headers(directory).values())


def tensor_headers(directory: Path) -> dict[str, TensorHeader]:
    """Headers of all tensors, by name, over all shards."""
    return read_headers(directory, sorted(path.name for path in directory.glob("*.safetensors")), str(directory))
