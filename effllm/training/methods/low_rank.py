"""What the methods of low-rank updates share: W + s B A of rank r in place of each targeted weight W."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from effllm.fields import Dimension, Fraction
from effllm.training.methods.adapter import AdapterMethod
from effllm.training.methods.method import PreparedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

    from effllm.models.architecture import ModelShape


class LowRankMethod(AdapterMethod):
    """An update B A of rank r is added to each targeted linear layer, which itself is fixed."""

    rank: Dimension = Field(description="Rank r of the update.")
    alpha: Dimension = Field(description="The update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)).")
    dropout: Annotated[Fraction, Field(lt=1)] = Field(
        default=0.0, description="Dropout of the update's input in training."
    )

    prefix: ClassVar[str] = "lora_"

    def misfit(self, id: str, model: str, shape: "ModelShape") -> str | None:
        if self.rank > shape.hidden_size:
            return f"methods.{id}.rank {self.rank} exceeds the width {shape.hidden_size} of {model}: lower it"
        return super().misfit(id, model, shape)

    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        return PreparedModel(self.with_adapter(model, where), rank=self.rank)

    def with_adapter(self, model: "nn.Module", where: str, **variant: Any) -> "PeftModel":
        """The model with peft's LoRA layers; `variant` are keys of peft's LoraConfig."""
        from peft import LoraConfig

        from effllm.training.methods.peft_adapters import require_rank, target_layers, with_adapter

        layers = target_layers(self.target_modules, model, where)
        require_rank(self.rank, layers, where)
        return with_adapter(
            model,
            layers,
            self.target_modules,
            where,
            partial(LoraConfig, r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, **variant),
        )

    def layer_parameters(self, inputs: int, outputs: int, has_bias: bool) -> int:
        return self.rank * (inputs + outputs)

    def row_products(self, inputs: int, outputs: int) -> int:
        return self.rank * (inputs + outputs)
