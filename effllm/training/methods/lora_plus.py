"""LoRA+."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from effllm.fields import PositiveFloat
from effllm.training.methods.low_rank import LowRankMethod
from effllm.training.methods.method import PreparedModel

if TYPE_CHECKING:
    from torch import nn


class LoraPlusMethod(LowRankMethod):
    """LoRA+ (Hayou et al., arXiv 2402.12354): LoRA whose B learns faster than its A."""

    kind: Literal["lora_plus"]
    learning_rate_ratio: Annotated[PositiveFloat, Field(ge=1, le=1e4)] = Field(
        default=16.0, description="Learning rate of B divided by that of A, which is the suite's."
    )

    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        """The rate of B is `learning_rate_ratio` times that of A (section 4)."""
        ratio = self.learning_rate_ratio
        adapted = self.with_adapter(model, where)
        return PreparedModel(
            adapted, learning_rate_ratio=lambda name: ratio if ".lora_B." in name else 1.0, rank=self.rank
        )
