"""What the methods of low-rank updates share: W + s B A of rank r in place of each targeted weight W."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from effllm.fields import Dimension, Fraction, Text
from effllm.models import costs
from effllm.training.methods.method import Method, PreparedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from effllm.models.architecture import ModelShape

# `model_type`s whose linear layers peft does not adapt all: some are read by fused kernels, past the adapter.
PARTLY_ADAPTED_MODEL_TYPES = frozenset({"mamba", "mamba2"})


class LowRankMethod(Method):
    """An update B A of rank r is added to each targeted linear layer, which itself is fixed."""

    rank: Dimension = Field(description="Rank r of the update.")
    alpha: Dimension = Field(description="The update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)).")
    dropout: Annotated[Fraction, Field(lt=1)] = Field(
        default=0.0, description="Dropout of the update's input in training."
    )
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = Field(
        default="all-linear",
        description="Linear layers that get an update: all but the output head, or the last parts of their names, such "
        "as [q_proj, v_proj].",
    )

    def misfit(self, id: str, model: str, shape: "ModelShape") -> str | None:
        if self.rank > shape.hidden_size:
            return f"methods.{id}.rank {self.rank} exceeds the width {shape.hidden_size} of {model}: lower it"
        if self.target_modules == "all-linear" and shape.model_type in PARTLY_ADAPTED_MODEL_TYPES:
            return (
                f"methods.{id}.target_modules: peft does not adapt all linear layers of {model} "
                f"({shape.model_type}): name those it may, or leave the model out"
            )
        return None

    def apply(self, model: "PreTrainedModel", where: str) -> PreparedModel:
        return PreparedModel(self.with_adapter(model, where))

    def with_adapter(self, model: "PreTrainedModel", where: str, **variant: Any) -> "PeftModel":
        """The model with peft's LoRA layers; `variant` are keys of peft's LoraConfig."""
        from effllm.training.methods.peft_adapters import with_adapter

        return with_adapter(self, model, where, **variant)

    def is_added(self, name: str) -> bool:
        return ".lora_" in name

    def sequence_flops(self, model: "PreTrainedModel | PeftModel", length: int) -> int:
        matrices = (weight for name, weight in model.named_parameters() if ".lora_A." in name or ".lora_B." in name)
        return costs.adapter_training_flops(model.config, length, sum(weight.numel() for weight in matrices))

    def trained_parameters(self, shape: Any) -> int | None:
        """Rank times inputs and outputs of each layer, where "all-linear" adapts attention and feed-forward."""
        layers = linear_layers(shape)
        if layers is None or self.target_modules != "all-linear":
            return None
        return shape.num_hidden_layers * self.rank * sum(inputs + outputs for inputs, outputs in layers)


def linear_layers(shape: Any) -> list[tuple[int, int]] | None:
    """(inputs, outputs) of a decoder layer's linear modules, as Transformers builds them; None for unknown families."""
    if shape.model_type not in ("llama", "mistral", "qwen2", "phi3"):
        return None
    hidden, inner = shape.hidden_size, shape.intermediate_size
    head_dim = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    width, shared = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    rest = [(width, hidden), (inner, hidden)]
    if shape.model_type == "phi3":
        return [(hidden, width + 2 * shared), (hidden, 2 * inner), *rest]
    return [(hidden, width), (hidden, shared), (hidden, shared), (hidden, inner), (hidden, inner), *rest]
