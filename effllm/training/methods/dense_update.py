"""What the methods share whose update has the weight's own shape, and is formed from small factors in each pass.

At equal rank they train from a small part of what LoRA trains to two and a half times that. So the rank may be left to
the program: `match_parameters` names a method of low-rank updates, and the rank is the one with the nearest count.
"""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from effllm.errors import UserError
from effllm.fields import Dimension, PlainId, Section, require, shortened
from effllm.training.methods.adapter import AdapterMethod
from effllm.training.methods.low_rank import LowRankMethod
from effllm.training.methods.method import Method, PreparedModel
from effllm.training.methods.targets import ALL_LINEAR, Targets, linear_layers

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from effllm.models.architecture import ModelShape

Width = tuple[int, int, bool]
"""Inputs and outputs of a layer, and whether it has a bias."""


class LowRankSize(Section):
    """What a method of low-rank updates trains: A and B of this rank on these layers."""

    rank: Dimension = Field(description="Rank of A and B.")
    target_modules: Targets = Field(default="all-linear", description="The layers that have them.")

    def parameters(self, layers: Iterable[Width]) -> int:
        """Parameters of A and B on these layers."""
        return sum(self.rank * (inputs + outputs) for inputs, outputs, _ in layers)


def _matched(value: Any) -> Any:
    if isinstance(value, dict):
        return LowRankSize.model_validate(value)
    if value is None or isinstance(value, LowRankSize) or (isinstance(value, str) and re.fullmatch(r"[\w-]+", value)):
        return value
    raise ValueError(f"{shortened(value)} is no method: write the id of one with a low-rank update, such as lora")


class DenseUpdateMethod(AdapterMethod):
    """Base of the methods that form a dense update in each forward pass, and multiply it with the layer's input."""

    rank: Dimension | None = Field(default=None, description="Rank r of the factors. Or give match_parameters.")
    match_parameters: Annotated[PlainId | LowRankSize | None, BeforeValidator(_matched)] = Field(
        default=None,
        description="Id of a low-rank method: the rank is the one whose number of trained parameters is nearest that "
        "method's on the model. Or give rank.",
    )

    has_rank_limit: ClassVar[bool] = True
    """Whether a rank beyond a layer's width is of no use."""

    @model_validator(mode="after")
    def _has_one_rank(self) -> Self:
        if (self.rank is None) == (self.match_parameters is None):
            given = "both are given" if self.rank else "neither is given"
            raise ValueError(f"rank, match_parameters: {given}; give one of them")
        return self

    @abstractmethod
    def parameters_at(self, rank: int, inputs: int, outputs: int, has_bias: bool) -> int:
        """Parameters of the update of a layer at this rank."""

    @abstractmethod
    def forming_flops(self, rank: int, inputs: int, outputs: int, has_bias: bool) -> int:
        """FLOPs of forming the update of a layer in a forward pass, and of its factors' gradients."""

    @abstractmethod
    def make_config(self, rank: int, **common: Any) -> "PeftConfig":
        """peft's configuration at this rank."""

    def largest_rank(self, inputs: int, outputs: int) -> int:
        """The last rank that changes the number of a layer's parameters."""
        return min(inputs, outputs)

    def resolved(self, where: str, methods: Mapping[str, Method]) -> Self:
        if not isinstance(self.match_parameters, str):
            return self
        require(f"{where}.match_parameters", self.match_parameters, methods)
        other = methods[self.match_parameters]
        if not isinstance(other, LowRankMethod) or other.layer_parameters(1, 1, False) != 2 * other.rank:
            raise ValueError(
                f"{where}.match_parameters: {self.match_parameters!r} trains more or other than A and B of a rank; "
                "name a method of kind lora, lora_plus, rslora or pissa"
            )
        size = LowRankSize(rank=other.rank, target_modules=other.target_modules)
        return self.model_copy(update={"match_parameters": size})

    def misfit(self, id: str, model: str, shape: "ModelShape") -> str | None:
        if self.has_rank_limit and self.rank is not None and self.rank > shape.hidden_size:
            return f"methods.{id}.rank {self.rank} exceeds the width {shape.hidden_size} of {model}: lower it"
        layers, size = linear_layers(shape), self._common()
        if layers and size:
            layers *= shape.num_hidden_layers
            if mismatch := self._mismatch(layers, size.parameters(layers)):
                return f"methods.{id}.match_parameters, on {model}: {mismatch}"
        return super().misfit(id, model, shape)

    def apply(self, model: "nn.Module", where: str) -> PreparedModel:
        from effllm.training.methods.peft_adapters import require_rank, target_layers, widths_of, with_adapter

        layers = target_layers(self.target_modules, model, where)
        matched = None
        if isinstance(self.match_parameters, LowRankSize):
            others = target_layers(self.match_parameters.target_modules, model, where)
            matched = self.match_parameters.parameters(widths_of(others))
            if mismatch := self._mismatch(widths_of(layers), matched):
                raise UserError(f"{where}.match_parameters: {mismatch}.")
        rank = self.rank_on(widths_of(layers), matched)
        if self.has_rank_limit:
            require_rank(rank, layers, where)

        def make_config(**common: Any) -> "PeftConfig":
            return self.make_config(rank, **common)

        adapted = with_adapter(model, layers, self.target_modules, where, make_config)
        return PreparedModel(adapted, rank=rank, parameters_matched=matched)

    def rank_on(self, layers: list[Width], matched: int | None) -> int:
        """The rank on these layers: the study's, or the lowest of those that train nearest `matched` parameters."""
        if matched is None:
            assert self.rank is not None
            return self.rank
        limit = (min if self.has_rank_limit else max)(
            self.largest_rank(inputs, outputs) for inputs, outputs, _ in layers
        )
        counted = Counter(layers)
        return min(range(1, limit + 1), key=lambda rank: abs(self._total(rank, counted) - matched))

    def _mismatch(self, layers: list[Width], matched: int) -> str | None:
        """Why no rank matches so many parameters on these layers, with the remedy; None if one does."""
        rank = self.rank_on(layers, matched)
        parameters = self._total(rank, Counter(layers))
        if matched <= 2 * parameters <= 4 * matched:
            return None
        return (
            f"rank {rank} comes nearest to the {matched:,} trained parameters that are to be matched, with "
            f"{parameters:,}, less than half or more than double: give a rank, or change the method's other keys"
        )

    def _total(self, rank: int, counted: Mapping[Width, int]) -> int:
        return sum(self.parameters_at(rank, *layer) * count for layer, count in counted.items())

    def layer_parameters(self, inputs: int, outputs: int, has_bias: bool) -> int:
        assert self.rank is not None
        return self.parameters_at(self.rank, inputs, outputs, has_bias)

    def row_products(self, inputs: int, outputs: int) -> int:
        return inputs * outputs

    def pass_flops(self, model: "nn.Module") -> int:
        from effllm.training.methods.peft_adapters import adapted_layers, rank_of, widths_of

        rank = rank_of(model)
        return sum(self.forming_flops(rank, *widths) for widths in widths_of(adapted_layers(model)))

    def formed_weights(self, shape: Any) -> int:
        layers = linear_layers(shape) if self.target_modules == ALL_LINEAR else None
        return int(shape.num_hidden_layers) * sum(inputs * outputs for inputs, outputs, _ in layers or [])

    def trained_parameters(self, shape: Any) -> int | None:
        if self.match_parameters is None:
            return super().trained_parameters(shape)
        layers, size = linear_layers(shape), self._common()
        if layers is None or size is None:
            return None
        rank = self.rank_on(layers, size.parameters(layers))
        return int(shape.num_hidden_layers) * self._total(rank, Counter(layers))

    def _common(self) -> LowRankSize | None:
        """What is to be matched, where both it and this method are on all linear layers, which formulas count."""
        size = self.match_parameters
        if isinstance(size, LowRankSize) and self.target_modules == size.target_modules == ALL_LINEAR:
            return size
        return None
