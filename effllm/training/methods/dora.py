"""DoRA."""

from typing import TYPE_CHECKING, Any, Literal

from effllm.training.methods.low_rank import LowRankMethod, linear_layers
from effllm.training.methods.method import PreparedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DoraMethod(LowRankMethod):
    """DoRA (Liu et al., arXiv 2402.09353): a trained magnitude per output, and LoRA on the direction."""

    kind: Literal["dora"]

    def apply(self, model: "PreTrainedModel", where: str) -> PreparedModel:
        return PreparedModel(self.with_adapter(model, where, use_dora=True))

    def trained_parameters(self, shape: Any) -> int | None:
        """LoRA's, and a magnitude for each output."""
        updates = super().trained_parameters(shape)
        if updates is None:
            return None
        return updates + shape.num_hidden_layers * sum(outputs for _, outputs in linear_layers(shape) or [])
