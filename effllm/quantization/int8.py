"""Weights in eight-bit integers by torchao, multiplied in 16 bits."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effllm.quantization.loaded import TorchaoPrecision
from effllm.quantization.precision import misfit_of_groups
from effllm.quantization.torchao_tensors import kernel_of, quantize_with_torchao

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Int8Precision(TorchaoPrecision):
    """Weights of the decoder's linear layers in eight-bit integers by torchao; activations stay in 16 bits."""

    kind: Literal["int8"]
    group_size: Literal[-1, 32, 64, 128] = Field(
        default=-1, description="Weights that share a scale; -1 is one group per output channel."
    )
    compute_dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the layers left unquantized and of the arithmetic."
    )

    columns: ClassVar[tuple[str, ...]] = ("bits", "group_size", "scheme")
    scheme: ClassVar[str] = "int8 weights"

    @property
    def label(self) -> str:
        return "int8"

    def misfit_of_widths(self, widths: Mapping[str, int]) -> str | None:
        return misfit_of_groups(self.group_size, widths)

    def weight_bytes(self, packed: int, others: int) -> float:
        # A scale in 32 bits, and a zero point, which is written though it is 0, in 8.
        overhead_bits = 40 / self.group_size if self.group_size > 0 else 0.0
        return packed * (8 + overhead_bits) / 8 + 2.0 * others

    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow

        granularity = PerGroup(self.group_size) if self.group_size > 0 else PerRow()
        # Settings of torch.compile for the whole process are none of a precision's.
        settings = Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)
        quantize_with_torchao(source, target, self, self.compute_dtype, settings)

    def running_kernel(self, model: "PreTrainedModel") -> str | None:
        return kernel_of(model, "weights cast, 16-bit product")
