"""What a fine-tuning method says of itself. Nothing here imports torch before a method is applied."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from effllm.fields import Section, Text

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from effllm.models.architecture import ModelShape
    from effllm.training.settings import AdamW


@dataclass(frozen=True)
class PreparedModel:
    """A model that a method has made ready for training.

    `model` has gradients where the method trains. `initial_adapter` holds the tensors of an adapter that did not start
    at zero, on the CPU by the names of peft's files, because what was learned is the difference from them.
    `learning_rate_ratio` is what a parameter's name multiplies the learning rate by. `rank` is the adapter's, and
    `parameters_matched` the number of trained parameters by which it was chosen, if it was.
    """

    model: "nn.Module"
    initial_adapter: "dict[str, Tensor] | None" = None
    learning_rate_ratio: Callable[[str], float] = lambda name: 1.0
    rank: int | None = None
    parameters_matched: int | None = None

    def parameter_groups(self, model: "nn.Module", learning_rate: float, weight_decay: float) -> "list[dict[str, Any]]":
        """The optimizer's groups: by learning rate, and by whether weights decay, which vectors do not.

        `model` is this model as it is trained: what shards it may have replaced its parameters. Groups hold trained
        parameters only, each once, in the model's order; none is empty.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                decay = weight_decay if parameter.ndim > 1 else 0.0
                key = (learning_rate * self.learning_rate_ratio(name), decay)
                groups.setdefault(key, []).append(parameter)
        return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]

    def optimizer(self, model: "nn.Module", settings: "AdamW") -> "torch.optim.Optimizer":
        """AdamW over the groups of `model`, this model as it is trained."""
        import torch

        return torch.optim.AdamW(
            self.parameter_groups(model, settings.learning_rate, settings.weight_decay),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )


class Method(Section):
    """Base of the methods. A subclass has `kind`, a literal, and its own settings as fields.

    trains_whole_model: whether the model itself is trained and published, not an adapter.
    """

    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")

    trains_whole_model: ClassVar[bool] = False

    def resolved(self, where: str, methods: "Mapping[str, Method]") -> Self:
        """The method with what it takes from others of the study's `methods`; ValueError for one that is not there."""
        return self

    def misfit(self, id: str, model: str, shape: "ModelShape") -> str | None:
        """Why the method, `id` in the study, cannot train a `model` of this shape, with the remedy; None if it can."""
        return None

    @abstractmethod
    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        """Make a model of any library ready for training; `where` is the method's key in the study, for errors.

        Adapters are drawn from torch's global generator. Weights are loaded, and methods applied, before anything is
        sharded over devices. Raises `UserError`, before anything is changed, where the method does not fit the model.
        """

    def is_added(self, name: str) -> bool:
        """Whether a parameter of the prepared model is the method's own, and not one of the base model."""
        return False

    def added_products(self, model: "nn.Module") -> dict[str, int]:
        """Multiply-adds that the method adds for each row of a layer's input, by the layer's name in the base model.

        What sees other rows in other layers, such as images and text, has its FLOPs from these: 6 for each.
        """
        return {}

    def pass_flops(self, model: "nn.Module") -> int:
        """FLOPs of a forward and backward pass of a prepared model that no number of rows changes."""
        return 0

    @abstractmethod
    def sequence_flops(self, model: "PreTrainedModel | PeftModel", length: int) -> int:
        """Model FLOPs of training on one sequence of `length` tokens of a prepared causal language model."""

    def formed_weights(self, shape: Any) -> int:
        """Numbers of the matrices that the method forms in a forward pass and keeps for the backward pass."""
        return 0

    @abstractmethod
    def trained_parameters(self, shape: Any) -> int | None:
        """Parameters that it trains of a model of this configuration; None where no formula counts them."""


def kind_of(model: "nn.Module") -> str:
    """What a model is called in a message: its `model_type`, or its class where its library has none."""
    return getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
