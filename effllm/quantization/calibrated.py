"""What precisions of gptqmodel have in common: integers in groups, calibrated. Nothing here imports torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from effllm.quantization.precision import Calibration, Precision, misfit_of_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from effllm.models.architecture import ModelShape

# `model_type`s of the study's own architectures that gptqmodel quantizes (a test compares them with the library).
GPTQ_MODEL_TYPES = frozenset({"llama", "phi3", "qwen2"})
# Of these, those whose fused layers gptqmodel takes apart: by GPTQ they are put back together.
FUSED_MODEL_TYPES = frozenset({"phi3"})
# The scale of a group of weights; its zero point has the weights' own bits.
_SCALE_BITS = 16

KERNEL: Any = Field(
    default="auto",
    description="Kernel that runs the weights wherever they are loaded, noted in the checkpoint; auto leaves it to "
    "gptqmodel, which takes the fastest that the machine has or can compile. profile.json says which one ran.",
)


class CalibratedPrecision(Precision):
    """Base of the precisions of gptqmodel, which have `kind`, `bits` and `kernel` narrowed to what there is."""

    kind: str
    bits: int
    group_size: Literal[-1, 32, 64, 128] = Field(
        description="Weights that share a scale and a zero point; -1 is one group per output channel."
    )
    kernel: str = KERNEL
    calibration: Calibration = Field(description="Calibration set.")

    @model_serializer(mode="wrap")
    def _only_a_chosen_kernel(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if (key, value) != ("kernel", "auto")}

    @property
    def nominal_bits(self) -> int:
        return self.bits

    @property
    def number(self) -> str:
        return f"int{self.bits}"

    @property
    def label(self) -> str:
        return f"{self.kind} {self.bits}"

    @property
    def work(self) -> str:
        calibration = self.calibration
        return f"{self.label} bit, {calibration.samples} x {calibration.sequence_length} tokens"

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

    def running_kernel(self, model: "PreTrainedModel") -> str | None:
        from effllm.quantization.gptq_kernels import kernel_of

        return kernel_of(model)
