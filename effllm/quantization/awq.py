"""Weights in four-bit integers by AWQ (Lin et al., arXiv 2306.00978), computed by gptqmodel."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from effllm.quantization.awq_tensors import packed_layers
from effllm.quantization.gptq import GPTQ_MODEL_TYPES
from effllm.quantization.precision import Calibration, PackedLayer, Precision, misfit_of_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from effllm.models.architecture import ModelShape
    from effllm.models.checkpoint.headers import TensorHeader

# The scale of a group of weights; its zero point has the weights' own bits.
_SCALE_BITS = 16


class AwqPrecision(Precision):
    """Weights of the decoder's linear layers in integers by AWQ: columns that count are scaled up first.

    Which count, activations say (Lin et al., arXiv 2306.00978). What is left unquantized, and the arithmetic, is in
    float16, as its kernels are.
    """

    kind: Literal["awq"]
    bits: Literal[4] = Field(default=4, description="Bits per weight.")
    group_size: Literal[-1, 32, 64, 128] = Field(
        description="Weights that share a scale and a zero point; -1 is one group per output channel."
    )
    kernel: Literal["auto", "marlin", "exllama_v2", "gemm", "torch"] = Field(
        default="auto",
        description="Kernel that runs the weights wherever they are loaded, noted in the checkpoint; auto leaves it to "
        "gptqmodel, which takes the fastest that the machine has or can compile. profile.json says which one ran.",
    )
    calibration: Calibration = Field(description="Calibration set.")

    columns: ClassVar[tuple[str, ...]] = ("bits", "group_size", "scheme")
    why_empty: ClassVar[str] = "the method has no such setting"
    scheme: ClassVar[str] = "AWQ, zero points"

    @model_serializer(mode="wrap")
    def _only_a_chosen_kernel(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if (key, value) != ("kernel", "auto")}

    @property
    def nominal_bits(self) -> int:
        return self.bits

    @property
    def label(self) -> str:
        return f"awq {self.bits}"

    @property
    def work(self) -> str:
        calibration = self.calibration
        return f"awq {self.bits} bit, {calibration.samples} x {calibration.sequence_length} tokens"

    def calibration_set(self) -> Calibration:
        return self.calibration

    def misfit(self, shape: "ModelShape") -> str | None:
        if shape.saved_model_type not in GPTQ_MODEL_TYPES:
            return (
                f"the quantizer does not know model_type {shape.saved_model_type!r}; use one of "
                f"{', '.join(sorted(GPTQ_MODEL_TYPES))} or drop the precision from its tables"
            )
        return self.misfit_of_widths(shape.linear_in_features())

    def misfit_of_widths(self, widths: Mapping[str, int]) -> str | None:
        return misfit_of_groups(self.group_size, widths)

    def weight_bytes(self, packed: int, others: int) -> float:
        overhead_bits = (_SCALE_BITS + self.bits) / self.group_size if self.group_size > 0 else 0.0
        return packed * (self.bits + overhead_bits) / 8 + 2.0 * others

    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        from effllm.quantization.awq_quantizer import quantize_awq

        assert calibration is not None
        quantize_awq(source, target, self, calibration, records)

    def packed_layers(self, tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
        return packed_layers(tensors)

    def running_kernel(self, model: "PreTrainedModel") -> str | None:
        from effllm.quantization.gptq_kernels import kernel_of

        return kernel_of(model)
