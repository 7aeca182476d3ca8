"""Weights in integers by GPTQ (Frantar et al., arXiv 2210.17323), computed by gptqmodel.

`gptq_quantizer.py` quantizes, `gptq_kernels.py` chooses and checks the kernel, `gptq_fuse.py` puts fused layers back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from effllm.fields import Fraction
from effllm.quantization.calibrated import KERNEL, CalibratedPrecision
from effllm.quantization.gptq_tensors import WORD_BITS, packed_layers
from effllm.quantization.precision import PackedLayer

if TYPE_CHECKING:
    from effllm.models.checkpoint.headers import TensorHeader

_BITS = (8, 4, 3, 2)


class GptqPrecision(CalibratedPrecision):
    """Weights of the decoder's linear layers in integers by GPTQ (Frantar et al., arXiv 2210.17323)."""

    kind: Literal["gptq"]
    bits: Literal[2, 3, 4, 8] = Field(description="Bits per weight.")
    act_order: bool = Field(description="Quantize columns by decreasing activation (desc_act).")
    symmetric: bool = Field(default=True, description="Symmetric ranges, with no zero point.")
    damping: Annotated[Fraction, Field(gt=0)] = Field(
        description="Share of the mean diagonal added to the Hessian's diagonal (damp_percent)."
    )
    compute_dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the layers left unquantized and of the arithmetic."
    )
    kernel: Literal["auto", "marlin", "exllama_v2", "triton", "torch"] = KERNEL

    columns: ClassVar[tuple[str, ...]] = ("bits", "group_size", "act_order", "damping")

    def misfit_of_widths(self, widths: Mapping[str, int]) -> str | None:
        for layer, width in widths.items():
            if width * self.bits % WORD_BITS:
                fitting = " or ".join(str(bits) for bits in _BITS if width * bits % WORD_BITS == 0)
                remedy = f"set bits to {fitting}" if fitting else "drop the precision from its tables"
                what = f"{self.bits}-bit numbers of the {layer} width {width}"
                return f"{what} do not fill words of {WORD_BITS} bits; {remedy}"
        return super().misfit_of_widths(widths)

    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        from effllm.quantization.gptq_quantizer import quantize_gptq
        from effllm.quantization.language_part import on_language_model

        assert calibration is not None
        on_language_model(source, target, lambda one, other: quantize_gptq(one, other, self, calibration, records))

    def packed_layers(self, tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
        return packed_layers(tensors)
