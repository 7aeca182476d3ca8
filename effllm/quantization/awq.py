"""Weights in four-bit integers by AWQ (Lin et al., arXiv 2306.00978), computed by gptqmodel."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effllm.quantization.awq_tensors import packed_layers
from effllm.quantization.calibrated import FUSED_MODEL_TYPES, KERNEL, CalibratedPrecision
from effllm.quantization.precision import PackedLayer

if TYPE_CHECKING:
    from effllm.models.architecture import ModelShape
    from effllm.models.checkpoint.headers import TensorHeader


class AwqPrecision(CalibratedPrecision):
    """Weights of the decoder's linear layers in integers by AWQ: columns that count are scaled up first.

    Which count, activations say (Lin et al., arXiv 2306.00978). What is left unquantized, and the arithmetic, is in
    float16, as its kernels are.
    """

    kind: Literal["awq"]
    bits: Literal[4] = Field(default=4, description="Bits per weight.")
    kernel: Literal["auto", "marlin", "exllama_v2", "gemm", "torch"] = KERNEL

    columns: ClassVar[tuple[str, ...]] = ("bits", "group_size", "scheme")
    why_empty: ClassVar[str] = "the method has no such setting"
    scheme: ClassVar[str] = "AWQ, zero points"

    def misfit(self, shape: "ModelShape") -> str | None:
        if shape.saved_model_type in FUSED_MODEL_TYPES:
            return (
                f"the quantizer loses the halves of fused layers, which model_type {shape.saved_model_type!r} has; "
                "drop the precision from its tables"
            )
        return super().misfit(shape)

    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        from effllm.quantization.awq_quantizer import quantize_awq
        from effllm.quantization.language_part import on_language_model

        assert calibration is not None
        on_language_model(source, target, lambda one, other: quantize_awq(one, other, self, calibration, records))

    def packed_layers(self, tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
        return packed_layers(tensors)
