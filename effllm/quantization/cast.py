"""Weights cast to a 16-bit type."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from effllm.errors import CellFailure
from effllm.quantization.precision import Precision


class CastPrecision(Precision):
    """Weights cast to a 16-bit type."""

    kind: Literal["cast"]
    dtype: Literal["bfloat16", "float16"] = Field(description="Type of the weights and of the arithmetic.")

    why_empty: ClassVar[str] = "weights are cast, not quantized"
    is_quantized: ClassVar[bool] = False
    works_on_device: ClassVar[bool] = False
    job_minutes: ClassVar[tuple[float, float]] = (30, 1)

    @property
    def nominal_bits(self) -> int:
        return 16

    @property
    def number(self) -> str:
        return self.dtype

    @property
    def label(self) -> str:
        return f"cast {self.dtype}"

    @property
    def work(self) -> str:
        return "cast"

    def weight_bytes(self, packed: int, others: int) -> float:
        return 2.0 * (packed + others)

    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        cast(source, target, self)


def cast(source: Path, target: Path, settings: CastPrecision) -> None:
    """Write the model in `source` to `target` with its weights in `settings.dtype`.

    Raises `CellFailure` (nan) where a weight leaves the type's range: float16 ends at 65,504.
    """
    import torch

    from effllm.models.loading import load_causal_lm

    dtype = getattr(torch, settings.dtype)
    model = load_causal_lm(source, dtype)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise CellFailure("nan", f"{name} has values beyond the range of {settings.dtype}")
    model.save_pretrained(target)
