"""Weights in integers by GPTQ (Frantar et al., arXiv 2210.17323), computed by gptqmodel.

`gptq_quantizer.py` quantizes, `gptq_kernels.py` chooses and checks the kernel, `gptq_fuse.py` puts fused layers back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from effllm.fields import Fraction
from effllm.quantization.gptq_tensors import packed_layers
from effllm.quantization.precision import Calibration, PackedLayer, Precision, misfit_of_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from effllm.models.architecture import ModelShape
    from effllm.models.checkpoint.headers import TensorHeader

# `model_type`s of the study's own architectures that gptqmodel quantizes (a test compares them with the library).
GPTQ_MODEL_TYPES = frozenset({"llama", "phi3", "qwen2"})
# The scale of a group of weights; its zero point has the weights' own bits.
_SCALE_BITS = 16


class GptqPrecision(Precision):
    """Weights of the decoder's linear layers in integers by GPTQ (Frantar et al., arXiv 2210.17323)."""

    kind: Literal["gptq"]
    bits: Literal[2, 3, 4, 8] = Field(description="Bits per weight.")
    group_size: Literal[-1, 32, 64, 128] = Field(
        description="Weights that share a scale and a zero point; -1 is one group per output channel."
    )
    act_order: bool = Field(description="Quantize columns by decreasing activation (desc_act).")
    symmetric: bool = Field(default=True, description="Symmetric ranges, with no zero point.")
    damping: Annotated[Fraction, Field(gt=0)] = Field(
        description="Share of the mean diagonal added to the Hessian's diagonal (damp_percent)."
    )
    compute_dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the layers left unquantized and of the arithmetic."
    )
    kernel: Literal["auto", "marlin", "exllama_v2", "triton", "torch"] = Field(
        default="auto",
        description="Kernel that runs the weights wherever they are loaded, noted in the checkpoint; auto leaves it to "
        "gptqmodel, which takes the fastest that the machine has or can compile. profile.json says which one ran.",
    )
    calibration: Calibration = Field(description="Calibration set.")

    columns: ClassVar[tuple[str, ...]] = ("bits", "group_size", "act_order", "damping")

    @model_serializer(mode="wrap")
    def _only_a_chosen_kernel(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if (key, value) != ("kernel", "auto")}

    @property
    def nominal_bits(self) -> int:
        return self.bits

    @property
    def label(self) -> str:
        return f"gptq {self.bits}"

    @property
    def work(self) -> str:
        calibration = self.calibration
        return f"gptq {self.bits} bit, {calibration.samples} x {calibration.sequence_length} tokens"

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
        from effllm.quantization.gptq_quantizer import quantize_gptq

        assert calibration is not None
        quantize_gptq(source, target, self, calibration, records)

    def packed_layers(self, tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
        return packed_layers(tensors)

    def running_kernel(self, model: "PreTrainedModel") -> str | None:
        from effllm.quantization.gptq_kernels import kernel_of

        return kernel_of(model)
