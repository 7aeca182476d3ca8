"""Freezing the first layers."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effllm.errors import UserError
from effllm.fields import Layers
from effllm.models import costs
from effllm.models.vision_language.parts import part_of
from effllm.training.methods.method import Method, PreparedModel, kind_of

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from effllm.models.architecture import ModelShape


class FreezeMethod(Method):
    """The input embeddings and the first layers are fixed, all above is trained."""

    kind: Literal["freeze"]
    frozen_layers: Layers = Field(description="Number of layers, counted from the input, that are fixed.")

    trains_whole_model: ClassVar[bool] = True

    def misfit(self, id: str, model: str, shape: "ModelShape") -> str | None:
        if self.frozen_layers < shape.num_hidden_layers:
            return None
        return (
            f"methods.{id}.frozen_layers {self.frozen_layers} leaves none of the {shape.num_hidden_layers} "
            f"layers of {model} to train: lower it"
        )

    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        """Fix all embeddings and the first layers, so that the backward pass ends at the first trained layer.

        An output head that shares its weight with the input embedding is fixed with it.
        """
        from torch import nn

        layers = decoder_layers(model)
        if layers is None or self.frozen_layers >= len(layers):
            count = "no list of layers" if layers is None else f"{len(layers)} layers"
            raise UserError(
                f"{where}.frozen_layers: {self.frozen_layers} leaves no layer to train, because the model "
                f"({kind_of(model)}) has {count}: fix fewer, or leave the model out of the suite."
            )
        model.requires_grad_(True)
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        for module in (*embeddings, *layers[: self.frozen_layers]):
            module.requires_grad_(False)
        return PreparedModel(model)

    def sequence_flops(self, model: "PreTrainedModel | PeftModel", length: int) -> int:
        head_is_trained = model.get_output_embeddings().weight.requires_grad
        return costs.upper_training_flops(model.config, length, self.frozen_layers, head_is_trained)

    def trained_parameters(self, shape: Any) -> int:
        count = costs.parameter_count(shape)
        return count.total - count.embedding - self.frozen_layers * costs.describe(shape).layer.parameters


def decoder_layers(model: "nn.Module") -> "nn.ModuleList | None":
    """The model's layers from the input upwards, or None if it does not keep them in one list."""
    from torch import nn
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return None
    count = model.config.get_text_config().num_hidden_layers
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        # A vision tower may have as many.
        and part_of(model.config.model_type, name) is None
    ]
    # Layers may hold lists of the same length, such as experts; modules() gives the outer ones first.
    return lists[0] if lists else None
