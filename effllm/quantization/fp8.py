"""Weights in eight-bit floating point (E4M3) by torchao, and activations where the device multiplies such numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effllm.quantization.loaded import TorchaoPrecision
from effllm.quantization.torchao_tensors import kernel_of, quantize_with_torchao

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The first NVIDIA GPUs whose tensor cores multiply FP8: Ada and Hopper.
_CAPABILITY = (8, 9)
# Matrices that they take have widths that this divides.
_MULTIPLE = 16


class Fp8Precision(TorchaoPrecision):
    """Weights of the decoder's linear layers in FP8 (E4M3) by torchao; what is left unquantized is in bfloat16."""

    kind: Literal["fp8"]
    scales: Literal["tensor", "row"] = Field(
        description="What shares a scale: a whole matrix, or each of its rows; of activations all tokens, or each."
    )
    activations: Literal["dynamic", "none"] = Field(
        default="dynamic",
        description="dynamic: inputs are rounded to FP8 too, by their own largest value, and multiplied in FP8, for "
        "which the GPU needs compute capability 8.9; none: weights are cast back, and multiplied in bfloat16 anywhere.",
    )

    columns: ClassVar[tuple[str, ...]] = ("bits", "scheme")

    @property
    def scheme(self) -> str:
        what = "weights and activations" if self.activations == "dynamic" else "weights"
        return f"FP8 {what}, a scale per {self.scales}"

    @property
    def label(self) -> str:
        return f"fp8 {self.scales} {self.activations}"

    def misfit_of_widths(self, widths: Mapping[str, int]) -> str | None:
        for layer, width in widths.items():
            if self.activations == "dynamic" and width % _MULTIPLE:
                return (
                    f"{_MULTIPLE} does not divide the {layer} width {width} of the model, as products in FP8 need; "
                    "set activations: none, or drop the precision from its tables"
                )
        return None

    def refusal(self, device: str) -> str | None:
        if self.activations == "none":
            return None
        needed = f"FP8 products need a GPU of compute capability {'.'.join(map(str, _CAPABILITY))} or later"
        if not device.startswith("cuda"):
            return f"{needed}, and this ran on {device}"
        import torch

        found = torch.cuda.get_device_capability(device)
        return None if found >= _CAPABILITY else f"{needed}, and this one has {'.'.join(map(str, found))}"

    def weight_bytes(self, packed: int, others: int) -> float:
        # Scales of matrices and rows are as good as nothing.
        return packed + 2.0 * others

    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Float8WeightOnlyConfig,
            PerRow,
            PerTensor,
        )

        made_of = Float8DynamicActivationFloat8WeightConfig if self.activations == "dynamic" else Float8WeightOnlyConfig
        granularity = PerTensor() if self.scales == "tensor" else PerRow()
        # Settings of torch.compile for the whole process are none of a precision's.
        settings = made_of(granularity=granularity, set_inductor_config=False)
        quantize_with_torchao(source, target, self, "bfloat16", settings)

    def running_kernel(self, model: "PreTrainedModel") -> str | None:
        dynamic = self.activations == "dynamic"
        return kernel_of(model, "torch._scaled_mm" if dynamic else "weights cast, 16-bit product")
