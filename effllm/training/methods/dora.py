"""DoRA."""

from typing import TYPE_CHECKING, Literal

from effllm.training.methods.low_rank import LowRankMethod
from effllm.training.methods.method import PreparedModel

if TYPE_CHECKING:
    from torch import nn


class DoraMethod(LowRankMethod):
    """DoRA (Liu et al., arXiv 2402.09353): a trained magnitude per output, and LoRA on the direction."""

    kind: Literal["dora"]

    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        return PreparedModel(self.with_adapter(model, where, use_dora=True), rank=self.rank)

    def layer_parameters(self, inputs: int, outputs: int, has_bias: bool) -> int:
        """LoRA's, and a magnitude for each output."""
        return super().layer_parameters(inputs, outputs, has_bias) + outputs
