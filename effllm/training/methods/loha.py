"""LoHa."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from effllm.fields import Dimension, Fraction
from effllm.training.methods.dense_update import DenseUpdateMethod

if TYPE_CHECKING:
    from peft import PeftConfig


class LoHaMethod(DenseUpdateMethod):
    """LoHa (Hyeon-Woo et al., arXiv 2108.06098): the elementwise product of two low-rank updates, B1 A1 and B2 A2."""

    kind: Literal["loha"]
    alpha: Dimension | None = Field(
        default=None, description="The update is scaled by alpha / rank; null scales it by one."
    )
    dropout: Annotated[Fraction, Field(lt=1)] = Field(
        default=0.0, description="Share of the update's rows that are left out in training."
    )

    prefix: ClassVar[str] = "hada_"

    def parameters_at(self, rank: int, inputs: int, outputs: int, has_bias: bool) -> int:
        return 2 * rank * (inputs + outputs)

    def forming_flops(self, rank: int, inputs: int, outputs: int, has_bias: bool) -> int:
        """Two products, the same again in the backward pass, which keeps neither, and the gradients of four factors."""
        return 2 * (2 + 2 + 4) * rank * inputs * outputs

    def make_config(self, rank: int, **common: Any) -> "PeftConfig":
        from peft import LoHaConfig

        return LoHaConfig(r=rank, alpha=self.alpha or rank, rank_dropout=self.dropout, **common)
