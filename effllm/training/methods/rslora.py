"""Rank-stabilised LoRA."""

from typing import TYPE_CHECKING, Literal

from effllm.training.methods.low_rank import LowRankMethod
from effllm.training.methods.method import PreparedModel

if TYPE_CHECKING:
    from torch import nn


class RsLoraMethod(LowRankMethod):
    """Rank-stabilised LoRA (Kalajdzievski, arXiv 2312.03732): the scale is alpha / sqrt(rank)."""

    kind: Literal["rslora"]

    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        return PreparedModel(self.with_adapter(model, where, use_rslora=True), rank=self.rank)
