"""A quantization method: every row of a linear layer rounded to 2^bits levels, and stored in bfloat16."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from effllm.quantization.precision import Precision


class RoundedPrecision(Precision):
    """Weights rounded to the nearest of evenly spaced levels."""

    kind: Literal["rounded"]
    bits: Literal[4, 8] = Field(description="Bits per weight.")
    levels: Literal["symmetric"] = Field(default="symmetric", description="Levels of a row.")

    columns: ClassVar[tuple[str, ...]] = ("bits", "levels")
    works_on_device: ClassVar[bool] = False

    @property
    def nominal_bits(self) -> int:
        return self.bits

    @property
    def label(self) -> str:
        return f"rounded {self.bits}"

    def weight_bytes(self, packed: int, others: int) -> float:
        return 2.0 * (packed + others)

    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        import torch

        from effllm.models.loading import load_causal_lm

        model = load_causal_lm(source, torch.float32)
        largest = 2 ** (self.bits - 1) - 1
        for module in model.get_decoder().modules():
            if isinstance(module, torch.nn.Linear):
                scale = module.weight.data.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
                module.weight.data = (module.weight.data / scale).round() * scale
        model.to(torch.bfloat16).save_pretrained(target)
