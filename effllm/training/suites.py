"""Fine-tuning suites: several methods on several models, all under one protocol.

What decides how much and in which order a method learns (data, encoding, samples per step, steps, schedule, seed) is a
key of the suite and of nothing smaller, so that the rows of its table can be compared. A method may differ from the
others in its micro batch and its devices, which change memory and time, not what is learned.
"""

import math
from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.data.instructions.settings import Encoding
from effllm.fields import (
    Dimension,
    Float,
    Fraction,
    Id,
    LearningRate,
    PlainId,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    repeated,
)
from effllm.models.sources import AnyArchitecture
from effllm.training.methods import AnyMethod, Method
from effllm.training.settings import AdamW, Parallel, Recipe


class FinetuningOptimizer(Section):
    """AdamW with linear warm-up and cosine decay to zero; the suite gives the learning rate."""

    warmup_ratio: Annotated[Fraction, Field(lt=1)] = Field(
        default=0.1, description="Share of the steps that are linear warm-up, rounded up."
    )
    beta1: Fraction = Field(default=0.9, description="Decay of the first moment.")
    beta2: Fraction = Field(default=0.999, description="Decay of the second moment.")
    epsilon: Annotated[PositiveFloat, Field(le=1)] = Field(default=1e-8, description="Added to the denominator.")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(
        default=0.0, description="Decoupled weight decay, of all trained tensors but vectors."
    )
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Gradients are clipped to this norm.")


class Vision(Section):
    """What of a vision-language model is trained beside the language model, by whatever method."""

    tower: Literal["frozen", "trained"] = Field(default="frozen", description="The vision tower.")
    projector: Literal["frozen", "trained"] = Field(
        default="frozen", description="What brings the tower's features to the width of the words."
    )

    def trains(self, part: str) -> bool:
        """Whether `tower` or `projector` is trained."""
        return getattr(self, part) == "trained"

    @property
    def trained(self) -> list[str]:
        """The parts that are."""
        return [part for part in type(self).model_fields if self.trains(part)]


class Protocol(Section):
    """What every method of a suite shares, whatever it trains on, and what its runs are made of."""

    samples_per_step: Dimension = Field(
        description="Samples per optimizer step, over all devices; with packing, packed sequences."
    )
    epochs: Dimension | None = Field(
        default=None, description="Passes over the training samples; each in an order of its own. Or give max_steps."
    )
    max_steps: PositiveInt | None = Field(default=None, description="Optimizer steps. Or give epochs.")
    optimizer: FinetuningOptimizer = Field(
        default_factory=FinetuningOptimizer, description="Optimizer and schedule, the learning rate apart."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16",
        description="Arithmetic: float32, or bfloat16 mixed precision over float32 trained and bfloat16 fixed weights.",
    )
    activation_checkpointing: bool = Field(
        default=False, description="Keep each layer's input only, and compute the rest again in the backward pass."
    )
    deterministic: bool = Field(
        default=True,
        description="Deterministic kernels only: a resumed run on one device ends with the same weights bit for bit.",
    )
    checkpoint_every_steps: PositiveInt | None = Field(
        description="Steps between checkpoints to resume from; null writes none, and a stopped run starts over."
    )
    log_every_steps: PositiveInt = Field(default=10, description="Steps between points of the loss curve.")
    held_out_samples: PositiveInt | None = Field(
        default=None, description="Held-out samples that are scored before and after; null scores all."
    )
    seed: Seed = Field(default=0, description="Seed of the order of samples, of the adapters and of dropout.")

    @model_validator(mode="after")
    def _has_one_length(self) -> "Protocol":
        if (self.epochs is None) == (self.max_steps is None):
            given = "both are given" if self.epochs else "neither is given"
            raise ValueError(f"epochs, max_steps: {given}; give one of them")
        if self.checkpoint_every_steps and self.checkpoint_every_steps % self.log_every_steps:
            raise ValueError(
                f"checkpoint_every_steps {self.checkpoint_every_steps} is not a multiple of log_every_steps "
                f"{self.log_every_steps}: the loss curve of a resumed run would differ; change one of them"
            )
        return self


class MethodRun(Protocol):
    """One method on one model."""

    method: AnyMethod = Field(description="What is trained.")
    learning_rate: LearningRate = Field(description="Peak learning rate.")
    micro_batch_size: Dimension = Field(description="Samples per forward pass on one device.")
    parallel: Parallel = Field(description="Devices, and what is sharded over them.")

    @property
    def trains_whole_model(self) -> bool:
        """Whether the model itself is trained, and not an adapter beside it."""
        return self.method.trains_whole_model

    def steps(self, sequences: int) -> int:
        """Optimizer steps over so many training sequences. Of an epoch's last, partial step nothing is taken."""
        if self.epochs is not None:
            return self.epochs * (sequences // self.samples_per_step)
        # One of the two is given.
        assert self.max_steps is not None
        return self.max_steps

    def recipe(self, sequences: int) -> Recipe:
        """What the Trainer is told, for a training set of so many sequences. ValueError if it is less than a step."""
        steps = self.steps(sequences)
        if not steps or sequences < self.samples_per_step:
            raise ValueError(
                f"samples_per_step {self.samples_per_step} is more than the {sequences} training sequences: lower it"
            )
        optimizer = self.optimizer.model_dump(exclude={"warmup_ratio"})
        # The product may lie a rounding error above a whole number.
        warmup = min(steps - 1, math.ceil(steps * self.optimizer.warmup_ratio - 1e-9))
        return Recipe(
            global_batch_size=self.samples_per_step,
            micro_batch_size=self.micro_batch_size,
            max_steps=steps,
            optimizer=AdamW(
                **optimizer, learning_rate=self.learning_rate, minimum_learning_rate=0.0, warmup_steps=warmup
            ),
            dtype=self.dtype,
            parallel=self.parallel,
            activation_checkpointing=self.activation_checkpointing,
            deterministic=self.deterministic,
            checkpoint_every_steps=self.checkpoint_every_steps,
            log_every_steps=self.log_every_steps,
            seed=self.seed,
        )


class _Encoded(Protocol):
    """The same where samples are conversations."""

    encoding: Encoding = Field(description="Template, truncation and packing.")
    vision: Vision | None = Field(
        default=None,
        description="Whether the vision tower and the projector are trained, where samples have images; null freezes "
        "both. Beside adapters, which are on the language model alone, they are trained whole, and saved with them.",
    )

    @model_serializer(mode="wrap")
    def _without_no_vision(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As it was before there was the key.
        return {key: value for key, value in serialize(self).items() if key != "vision" or value is not None}


class FinetuningRun(MethodRun, _Encoded):
    """One method on one language model: a node's slice of the study."""


class Suite(Protocol):
    """Every method on every model."""

    models: Annotated[list[Id], Field(min_length=1)] = Field(description="Ids of the base models.")
    methods: Annotated[list[PlainId], Field(min_length=1)] = Field(description="Ids of the methods.")
    learning_rate: LearningRate = Field(description="Peak learning rate of the models that have no rate of their own.")
    learning_rate_by_model: dict[Id, LearningRate] = Field(
        default_factory=dict, description="Peak learning rates by model: larger models take smaller ones."
    )
    micro_batch_size: Dimension = Field(description="Samples per forward pass on one device.")
    micro_batch_size_by_method: dict[PlainId, Dimension] = Field(
        default_factory=dict, description="Micro batches of single methods; the samples per step stay the same."
    )
    micro_batch_size_by_model: dict[Id, Dimension] = Field(
        default_factory=dict, description="Micro batches of single models, whatever the method."
    )
    parallel: Parallel = Field(default_factory=Parallel, description="Devices, and what is sharded over them.")
    parallel_by_model: dict[Id, Parallel] = Field(
        default_factory=dict,
        description="Devices of single models, and what is sharded over them; of methods in parallel_by_method the "
        "devices and nodes alone.",
    )
    parallel_by_method: dict[PlainId, Parallel] = Field(
        default_factory=dict,
        description="Devices of single methods, such as {full-offload: {strategy: zero3, offload: true}}.",
    )

    def nodes(self, id: str) -> list[str]:
        """Ids of the suite's nodes, `id` being its own: `<model>.<suite>.<method>`."""
        return [f"{model}.{id}.{method}" for model in self.models for method in self.methods]

    def settings_of(self, model: str, method: str) -> dict[str, Any]:
        """What differs between the runs of the suite, the method's own settings apart."""
        of_method = self.micro_batch_size_by_method.get(method, self.micro_batch_size)
        return {
            "learning_rate": self.learning_rate_by_model.get(model, self.learning_rate),
            "micro_batch_size": self.micro_batch_size_by_model.get(model, of_method),
            "parallel": self._parallel(model, method).model_dump(),
        }

    def _parallel(self, model: str, method: str) -> Parallel:
        of_model = self.parallel_by_model.get(model, self.parallel)
        of_method = self.parallel_by_method.get(method)
        if of_method is None:
            return of_model
        if model not in self.parallel_by_model:
            return of_method
        return of_method.model_copy(update={"devices": of_model.devices, "nodes": of_model.nodes})

    @model_validator(mode="after")
    def _overrides_name_members(self) -> "Suite":
        for key, given, members, what in (
            ("learning_rate_by_model", self.learning_rate_by_model, self.models, "models"),
            ("micro_batch_size_by_model", self.micro_batch_size_by_model, self.models, "models"),
            ("parallel_by_model", self.parallel_by_model, self.models, "models"),
            ("micro_batch_size_by_method", self.micro_batch_size_by_method, self.methods, "methods"),
            ("parallel_by_method", self.parallel_by_method, self.methods, "methods"),
        ):
            for id in given:
                if id not in members:
                    raise ValueError(f"{key}: {id!r} is not among the suite's {what}: correct it, or list it there")
        for what, ids in (("models", self.models), ("methods", self.methods)):
            if twice := repeated(ids):
                raise ValueError(f"{what}: {', '.join(twice)} is listed twice; list it once")
        return self

    @model_validator(mode="after")
    def _step_divides(self) -> "Suite":
        for model, method in product(self.models, self.methods):
            settings = self.settings_of(model, method)
            parallel = Parallel(**settings["parallel"])
            if parallel.strategy == "fsdp2":
                raise ValueError(
                    f"parallel of {method} on {model}: fsdp2 takes one type for all weights of a layer, and fixed ones "
                    "have another: choose ddp, zero2 or zero3"
                )
            ranks = parallel.world_size
            micro = settings["micro_batch_size"]
            if self.samples_per_step % (micro * ranks):
                times = f" times {ranks} ranks" if ranks > 1 else ""
                raise ValueError(
                    f"samples_per_step {self.samples_per_step} is not a multiple of micro_batch_size {micro}{times} of "
                    f"{method}: change one of them"
                )
        return self


class FinetuningSuite(Suite, _Encoded):
    """Every method on every model, on one set of instructions."""

    instructions: Id = Field(description="Id of the instructions.")


_Run = TypeVar("_Run", bound=MethodRun)


def run_of(suite: FinetuningSuite, method: Method, model: str, method_id: str) -> FinetuningRun:
    """The run of one method on one model."""
    return settings_of_run(FinetuningRun, suite, method, model, method_id)


def settings_of_run(kind: type[_Run], suite: Suite, method: Method, model: str, method_id: str) -> _Run:
    """The run of one method on one model. Labels are left out: they decide no result."""
    own = {**suite.settings_of(model, method_id), "method": method.model_dump() | {"label": None}}
    shared = {key: getattr(suite, key) for key in kind.model_fields if key not in own}
    plain = {key: value.model_dump() if isinstance(value, Section) else value for key, value in shared.items()}
    return kind.model_validate({**plain, **own})


def suite_misfit(
    suite: FinetuningSuite, methods: Mapping[str, Method], model: str, shape: AnyArchitecture
) -> str | None:
    """Why the suite cannot be run on a model of this shape, with the remedy; None if nothing is known against it."""
    length = suite.encoding.sequence_length
    if shape.longest_sequence is not None and length > shape.longest_sequence:
        return f"encoding.sequence_length {length} exceeds the {shape.longest_sequence} positions of {model}: lower it"
    misfits = (methods[id].misfit(id, model, shape) for id in suite.methods)
    return next((misfit for misfit in misfits if misfit), None)
