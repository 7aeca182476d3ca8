"""Bytes of weights on disk, and widths of packed layers, read from the headers of safetensors files."""

from pathlib import Path

from effllm.models.checkpoint.headers import TensorHeader, read_headers
from effllm.results.quantization import WeightBytes

# What stands in a GPTQ checkpoint in place of one linear layer's `weight`.
_PACKED = ("qweight", "qzeros", "scales", "g_idx")


def weight_bytes(directory: Path) -> WeightBytes:
    """Bytes of all tensors below `directory`, and of the quantized layers against the same layers in 16 bits.

    `quantized_layers_bytes` counts packed weights, scales, zero points and group indices; the 16-bit figure is
    rows x columns x 2 bytes of the weights they stand for. Both are None where nothing is quantized.
    """
    tensors = _tensors(directory)
    layers = _packed_layers(tensors)
    parts = [tensors[f"{layer}.{kind}"] for layer in layers for kind in _PACKED]
    bytes_16_bit = sum(rows * columns * 2 for rows, columns in layers.values())
    return WeightBytes(
        bytes=sum(tensor.bytes for tensor in tensors.values()),
        quantized_layers=len(layers),
        quantized_layers_bytes=sum(part.bytes for part in parts) if layers else None,
        quantized_layers_bytes_16_bit=bytes_16_bit if layers else None,
    )


def packed_shapes(directory: Path) -> set[tuple[int, int]]:
    """Input and output widths of the packed layers of a GPTQ checkpoint."""
    return set(_packed_layers(_tensors(directory)).values())


def _tensors(directory: Path) -> dict[str, TensorHeader]:
    """Headers of all tensors, by name, over all shards."""
    return read_headers(directory, sorted(path.name for path in directory.glob("*.safetensors")), str(directory))


def _packed_layers(tensors: dict[str, TensorHeader]) -> dict[str, tuple[int, int]]:
    """Input and output width of each packed layer, by name."""
    shapes = {}
    for layer in (name.rpartition(".")[0] for name in tensors if name.endswith(".qweight")):
        (in_features,) = tensors[f"{layer}.g_idx"].shape
        # Scales are [groups, out_features].
        _, out_features = tensors[f"{layer}.scales"].shape
        shapes[layer] = (in_features, out_features)
    return shapes
