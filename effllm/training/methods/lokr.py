"""LoKr."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from effllm.fields import Dimension, Fraction
from effllm.training.methods.dense_update import DenseUpdateMethod

if TYPE_CHECKING:
    from peft import PeftConfig


class LoKrMethod(DenseUpdateMethod):
    """LoKr (Yeh et al., arXiv 2309.14859): the Kronecker product of a small matrix and one of low rank."""

    kind: Literal["lokr"]
    factor: Dimension | None = Field(
        default=None,
        description="Sides of the small matrix, where they divide the layer's, or the next lower divisor; null takes "
        "divisors near the square root.",
    )
    alpha: Dimension | None = Field(
        default=None, description="The update is scaled by alpha / rank; null scales it by one."
    )
    dropout: Annotated[Fraction, Field(lt=1)] = Field(
        default=0.0, description="Share of the update's rows that are left out in training."
    )

    prefix: ClassVar[str] = "lokr_"
    # From half of its longer side on, the larger matrix is trained whole.
    has_rank_limit: ClassVar[bool] = False

    def sides(self, inputs: int, outputs: int) -> tuple[int, int, int, int]:
        """Rows and columns of the small matrix, and of the large one."""
        columns, rows = divided(inputs, self.factor), divided(outputs, self.factor)
        return rows, columns, outputs // rows, inputs // columns

    def largest_rank(self, inputs: int, outputs: int) -> int:
        _, _, rows, columns = self.sides(inputs, outputs)
        return math.ceil(max(rows, columns) / 2)

    def parameters_at(self, rank: int, inputs: int, outputs: int, has_bias: bool) -> int:
        small_rows, small_columns, rows, columns = self.sides(inputs, outputs)
        is_whole = rank >= self.largest_rank(inputs, outputs)
        return small_rows * small_columns + (rows * columns if is_whole else rank * (rows + columns))

    def forming_flops(self, rank: int, inputs: int, outputs: int, has_bias: bool) -> int:
        """The product of the large matrix's factors and their gradients. A Kronecker product is elementwise."""
        _, _, rows, columns = self.sides(inputs, outputs)
        return 0 if rank >= self.largest_rank(inputs, outputs) else 6 * rank * rows * columns

    def make_config(self, rank: int, **common: Any) -> "PeftConfig":
        from peft import LoKrConfig

        return LoKrConfig(
            r=rank,
            alpha=self.alpha or rank,
            rank_dropout=self.dropout,
            rank_dropout_scale=True,
            decompose_factor=self.factor or -1,
            **common,
        )


def divided(width: int, factor: int | None) -> int:
    """The smaller of the two factors into which peft splits a width."""
    if factor is not None and width % factor == 0:
        return factor
    near = math.isqrt(width) if factor is None else min(factor, math.isqrt(width))
    return max(divisor for divisor in range(1, near + 1) if width % divisor == 0)
