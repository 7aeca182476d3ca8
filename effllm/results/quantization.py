"""quantization.json: a model's precision and the bytes of its weights."""

from typing import Any, ClassVar

from pydantic import Field

from effllm.results.base import Part, ResultFile


class WeightBytes(Part):
    """Bytes of weights on disk."""

    bytes: int = Field(description="All tensors.")
    quantized_layers: int = Field(description="Layers that were quantized.")
    quantized_layers_bytes: int | None = Field(description="Packed weights, scales, zero points, group indices.")
    quantized_layers_bytes_16_bit: int | None = Field(description="The same layers in 16 bits.")


class Quantization(Part, ResultFile):
    """What was done to a model's weights."""

    FILE: ClassVar[str] = "quantization.json"

    nominal_bits: int = Field(description="Bits of a weight, scales and zero points left out.")
    precision: dict[str, Any] = Field(description="As the study states it.")
    weights: WeightBytes = Field(description="Bytes on disk.")
    unscored: str | None = Field(default=None, description="Why no score means anything; left out where one does.")
