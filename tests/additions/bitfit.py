"""A fine-tuning method: BitFit (Ben Zaken et al., arXiv 2106.10199), which trains the biases."""

from typing import Any, ClassVar, Literal

from effllm.errors import UserError
from effllm.models import costs
from effllm.training.methods.method import Method, PreparedModel


class BitFitMethod(Method):
    """The biases are trained, everything else is fixed."""

    kind: Literal["bitfit"]

    trains_whole_model: ClassVar[bool] = True

    def misfit(self, id: str, model: str, shape: Any) -> str | None:
        if shape.model_type == "llama":
            return f"methods.{id}: {model} has no biases to train; leave it out of the suite"
        return None

    def apply(self, model: Any, where: str) -> PreparedModel:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"{where}: the model has no biases to train; leave it out of the suite.")
        return PreparedModel(model)

    def sequence_flops(self, model: Any, length: int) -> int:
        return costs.adapter_training_flops(model.config, length, adapter_parameters=0)

    def trained_parameters(self, shape: Any) -> int | None:
        if shape.model_type != "qwen2":
            return None
        head_dim = shape.hidden_size // shape.num_attention_heads
        return shape.num_hidden_layers * (shape.num_attention_heads + 2 * shape.num_key_value_heads) * head_dim
