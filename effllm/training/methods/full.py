"""Training everything."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from effllm.models import costs
from effllm.training.methods.method import Method, PreparedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


class FullMethod(Method):
    """Every parameter is trained."""

    kind: Literal["full"]

    trains_whole_model: ClassVar[bool] = True

    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        model.requires_grad_(True)
        return PreparedModel(model)

    def sequence_flops(self, model: "PreTrainedModel | PeftModel", length: int) -> int:
        return costs.training_flops(model.config, length)

    def trained_parameters(self, shape: Any) -> int:
        return costs.parameter_count(shape).total
