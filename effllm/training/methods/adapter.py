"""What the methods of peft share: an update is added to each targeted linear layer, which itself is fixed."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from effllm.models import costs
from effllm.training.methods.method import Method
from effllm.training.methods.targets import ALL_LINEAR, PARTLY_ADAPTED_MODEL_TYPES, Targets, linear_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from effllm.models.architecture import ModelShape


class AdapterMethod(Method):
    """Base of the methods whose updates are peft's. A subclass has the settings of its update as fields.

    prefix: what the names of peft's parameters begin with.
    """

    target_modules: Targets = Field(
        default="all-linear",
        description="Linear layers that get an update: all-linear for all but the output head, the last parts of their "
        "names, such as [q_proj, v_proj], or a regular expression of whole names, such as "
        r".*language_model\..*(q|v)_proj.",
    )

    prefix: ClassVar[str]

    def misfit(self, id: str, model: str, shape: "ModelShape") -> str | None:
        if self.target_modules == ALL_LINEAR and shape.model_type in PARTLY_ADAPTED_MODEL_TYPES:
            return (
                f"methods.{id}.target_modules: peft does not adapt all linear layers of {model} "
                f"({shape.model_type}): name those it may, or leave the model out"
            )
        return None

    @abstractmethod
    def layer_parameters(self, inputs: int, outputs: int, has_bias: bool) -> int:
        """Parameters of the update of a layer of these widths."""

    @abstractmethod
    def row_products(self, inputs: int, outputs: int) -> int:
        """Multiply-adds of the update of a layer of these widths for one row of its input."""

    def is_added(self, name: str) -> bool:
        return f".{self.prefix}" in name

    def added_products(self, model: "nn.Module") -> dict[str, int]:
        from effllm.training.methods.peft_adapters import adapted_layers

        return {
            name: self.row_products(layer.in_features, layer.out_features)
            for name, layer in adapted_layers(model).items()
        }

    def sequence_flops(self, model: "PreTrainedModel | PeftModel", length: int) -> int:
        return costs.adapter_training_flops(model.config, length, sum(self.added_products(model).values()))

    def trained_parameters(self, shape: Any) -> int | None:
        """The updates of each layer's, where "all-linear" adapts attention and feed-forward."""
        layers = linear_layers(shape)
        if layers is None or self.target_modules != ALL_LINEAR:
            return None
        return shape.num_hidden_layers * sum(self.layer_parameters(*layer) for layer in layers)
