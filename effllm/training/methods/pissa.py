"""PiSSA."""

from typing import TYPE_CHECKING, Literal

from effllm.training.methods.low_rank import LowRankMethod
from effllm.training.methods.method import PreparedModel

if TYPE_CHECKING:
    from torch import nn


class PissaMethod(LowRankMethod):
    """PiSSA (Meng et al., arXiv 2404.02948): B A starts as the principal singular part, by the exact SVD."""

    kind: Literal["pissa"]

    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        """s B A starts as the first `rank` singular parts of W, and the layer keeps the rest (eq. 2-4).

        By the exact decomposition: a randomised one (`pissa_niter_*`) is another at every load.
        """
        from peft import get_peft_model_state_dict

        adapted = self.with_adapter(model, where, init_lora_weights="pissa")
        state = get_peft_model_state_dict(adapted)
        start = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        return PreparedModel(adapted, start, rank=self.rank)
