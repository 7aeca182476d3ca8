"""What precisions have in common into which Transformers quantizes while it loads. Nothing here imports torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from effllm.quantization.precision import PackedLayer, Precision
from effllm.quantization.torchao_tensors import packed_layers

if TYPE_CHECKING:
    from effllm.models.architecture import ModelShape
    from effllm.models.checkpoint.headers import TensorHeader

# `model_type`s of the study's own architectures whose layers are all called as layers. Mamba and RWKV reach into the
# weights, which are packed then, and mixtures keep their experts in tensors of another kind.
LOADED_MODEL_TYPES = frozenset({"gpt_neox", "llama", "mamba2", "phi3", "qwen2"})


class LoadedPrecision(Precision):
    """Base of the precisions that need no calibration: every weight is rounded by itself, or with those around it."""

    why_empty: ClassVar[str] = "the format has no such setting"
    job_minutes: ClassVar[tuple[float, float]] = (30, 1)

    def misfit(self, shape: "ModelShape") -> str | None:
        if shape.saved_model_type not in LOADED_MODEL_TYPES:
            return (
                f"model_type {shape.saved_model_type!r} cannot be packed by layers; use one of "
                f"{', '.join(sorted(LOADED_MODEL_TYPES))} or drop the precision from its tables"
            )
        return self.misfit_of_widths(shape.linear_in_features())


class TorchaoPrecision(LoadedPrecision):
    """Base of the precisions of torchao, which have eight bits and are called after their kind of number."""

    kind: str

    bits: ClassVar[int] = 8

    @property
    def nominal_bits(self) -> int:
        return self.bits

    @property
    def number(self) -> str:
        return self.kind

    def packed_layers(self, tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
        return packed_layers(tensors)
