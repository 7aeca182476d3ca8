"""Weights in four or eight bits by bitsandbytes: NF4 (arXiv 2305.14314) and LLM.int8 (arXiv 2208.07339)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import Float
from effllm.quantization.loaded import LoadedPrecision
from effllm.quantization.precision import PackedLayer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from effllm.models.checkpoint.headers import TensorHeader

_BITS = {"nf4": 4, "int8": 8}
# Weights that share a scale, and scales that share one in turn.
_BLOCK, _OUTER_BLOCK = 64, 256
_OUTLIERS = 6.0
_STATE = ".weight.quant_state.bitsandbytes__nf4"


class BnbPrecision(LoadedPrecision):
    """Weights of the decoder's linear layers in four or eight bits by bitsandbytes, without calibration."""

    kind: Literal["bnb"]
    format: Literal["nf4", "int8"] = Field(
        description="nf4: sixteen levels at quantiles of a normal distribution, for blocks of 64 weights (arXiv "
        "2305.14314). int8: rows in integers, and activations too, but for outliers (LLM.int8, arXiv 2208.07339)."
    )
    double_quantization: bool = Field(
        default=False, description="Of nf4: the scales of blocks in eight bits, 256 of them to a scale of their own."
    )
    outlier_threshold: Annotated[Float, Field(ge=0)] = Field(
        default=_OUTLIERS,
        description="Of int8: columns in which an activation exceeds it are multiplied in 16 bits; 0 leaves none out.",
    )
    compute_dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16",
        description="Type of the layers left unquantized and of the arithmetic. int8 multiplies what it takes out in "
        "float16 in any case.",
    )

    columns: ClassVar[tuple[str, ...]] = ("bits", "group_size", "scheme")

    @model_validator(mode="after")
    def _settings_are_of_the_format(self) -> "BnbPrecision":
        if self.double_quantization and self.format != "nf4":
            raise ValueError(f"double_quantization is of nf4, and format is {self.format!r}: drop it")
        if self.outlier_threshold != _OUTLIERS and self.format != "int8":
            raise ValueError(f"outlier_threshold is of int8, and format is {self.format!r}: drop it")
        return self

    @model_serializer(mode="wrap")
    def _only_settings_of_the_format(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        other = "outlier_threshold" if self.format == "nf4" else "double_quantization"
        return {key: value for key, value in serialize(self).items() if key != other}

    @property
    def bits(self) -> int:
        return _BITS[self.format]

    @property
    def group_size(self) -> int:
        return _BLOCK if self.format == "nf4" else -1

    @property
    def scheme(self) -> str:
        if self.format == "int8":
            return f"LLM.int8, outliers beyond {self.outlier_threshold:g}"
        return "NF4, scales in 8 bits" if self.double_quantization else "NF4"

    @property
    def nominal_bits(self) -> int:
        return self.bits

    @property
    def number(self) -> str:
        return self.format

    @property
    def label(self) -> str:
        return f"bnb {self.format}{' double' if self.double_quantization else ''}"

    def weight_bytes(self, packed: int, others: int) -> float:
        if self.format == "int8":
            # The scale of a row is as good as nothing.
            return packed + 2.0 * others
        scale_bits = 8 + 32 / _OUTER_BLOCK if self.double_quantization else 32
        return packed * (4 + scale_bits / _BLOCK) / 8 + 2.0 * others

    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        import torch
        from transformers import BitsAndBytesConfig

        from effllm.quantization.by_loading import quantize_by_loading

        dtype = getattr(torch, self.compute_dtype)
        if self.format == "nf4":
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=self.double_quantization,
                bnb_4bit_compute_dtype=dtype,
            )
        else:
            config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.outlier_threshold)
        quantize_by_loading(source, target, self, dtype, config, _is_packed)

    def packed_layers(self, tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
        mark = _STATE if self.format == "nf4" else ".SCB"
        layers = {}
        for layer in (name.removesuffix(mark) for name in tensors if name.endswith(mark)):
            packed = tensors[f"{layer}.weight"]
            parts = [name for name in tensors if name.startswith(f"{layer}.weight")]
            parts += [f"{layer}.SCB"] if self.format == "int8" else []
            layers[layer] = PackedLayer(math.prod(packed.shape) * 8 // self.bits, tuple(parts))
        return layers

    def running_kernel(self, model: "PreTrainedModel") -> str | None:
        # One class for each format; what its operations run by is the device's.
        found = {type(module).__name__ for module in model.modules() if _is_packed(module)}
        return ", ".join(f"bitsandbytes {name} ({model.device.type})" for name in sorted(found)) or None


def _is_packed(module: "nn.Module") -> bool:
    import bitsandbytes

    return isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt)
