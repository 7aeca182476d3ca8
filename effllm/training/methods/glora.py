"""GLoRA."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from effllm.training.methods.dense_update import DenseUpdateMethod

if TYPE_CHECKING:
    from peft import PeftConfig


class GloraMethod(DenseUpdateMethod):
    """GLoRA (Chavan et al., arXiv 2306.07967): W + W * A + B with A and B of rank r, the product with A elementwise.

    A layer with a bias b gets b + b * d + e + W C too, with C of rank r and numbers d and e.
    """

    kind: Literal["glora"]

    prefix: ClassVar[str] = "glora_"

    def parameters_at(self, rank: int, inputs: int, outputs: int, has_bias: bool) -> int:
        return 2 * rank * (inputs + outputs) + (rank * (inputs + 1) + 2 if has_bias else 0)

    def forming_flops(self, rank: int, inputs: int, outputs: int, has_bias: bool) -> int:
        """A, B and C as products, with the gradients of their factors; W C, with the gradient of C."""
        of_bias = 6 * rank * inputs + 4 * inputs * outputs if has_bias else 0
        return 2 * 6 * rank * inputs * outputs + of_bias

    def make_config(self, rank: int, **common: Any) -> "PeftConfig":
        from peft import GloraConfig

        return GloraConfig(r=rank, **common)
