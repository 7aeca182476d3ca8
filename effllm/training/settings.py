"""How models are trained: the recipe that pretraining and fine-tuning share, and pretraining runs."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import (
    Count,
    Dimension,
    Float,
    Fraction,
    Id,
    LearningRate,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
)
from effllm.models.architectures import Architecture


class AdamW(Section):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: LearningRate = Field(description="Peak learning rate.")
    minimum_learning_rate: Annotated[Float, Field(ge=0)] = Field(description="Learning rate at the last step.")
    warmup_steps: Count = Field(description="Optimizer steps of linear warm-up.")
    beta1: Fraction = Field(default=0.9, description="Decay of the first moment.")
    beta2: Fraction = Field(default=0.95, description="Decay of the second moment.")
    epsilon: Annotated[PositiveFloat, Field(le=1)] = Field(default=1e-8, description="Added to the denominator.")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(default=0.1, description="Decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Gradients are clipped to this norm.")

    @model_validator(mode="after")
    def _decays(self) -> "AdamW":
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate {self.minimum_learning_rate} exceeds learning_rate {self.learning_rate}: "
                "lower it"
            )
        return self


class Parallel(Section):
    """How one run is spread over devices. Every strategy is data-parallel: each rank has micro batches of its own."""

    strategy: Literal["single", "ddp", "fsdp2", "zero2", "zero3"] = Field(
        default="single",
        description="single: one device. ddp: a whole copy on each. fsdp2: weights, gradients and optimizer sharded by "
        "PyTorch. zero2, zero3: DeepSpeed, sharding gradients and optimizer, or the weights too.",
    )
    devices: Annotated[Dimension, Field(le=100_000)] = Field(default=1, description="Devices per node, one rank each.")
    nodes: Annotated[Dimension, Field(le=100_000)] = Field(default=1, description="Nodes.")
    offload: bool = Field(
        default=False, description="zero2, zero3: keep the optimizer (zero3: and the weights) in the host's memory."
    )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.devices * self.nodes

    @model_validator(mode="after")
    def _fits_the_strategy(self) -> "Parallel":
        if self.strategy == "single" and self.world_size > 1:
            raise ValueError(
                f"strategy single runs on one device, not {self.world_size}: choose ddp, fsdp2, zero2 or zero3"
            )
        if self.offload and not self.strategy.startswith("zero"):
            raise ValueError(f"offload is for zero2 and zero3, not {self.strategy}: choose one of them, or drop it")
        return self


class Recipe(Section):
    """What the Trainer is told, whatever is trained. The global batch does not depend on the number of ranks."""

    global_batch_size: Dimension = Field(description="Sequences, or images, per optimizer step, over all devices.")
    micro_batch_size: Dimension = Field(description="The same per forward pass on one device.")
    max_steps: PositiveInt = Field(description="Optimizer steps.")
    optimizer: AdamW = Field(description="Optimizer and schedule.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Arithmetic: float32, or bfloat16 mixed precision over float32 weights."
    )
    parallel: Parallel = Field(default_factory=Parallel, description="Devices, and what is sharded over them.")
    compile: bool = Field(default=False, description="Compile the model by torch.compile.")
    activation_checkpointing: bool = Field(
        default=False, description="Keep each layer's input only, and compute the rest again in the backward pass."
    )
    deterministic: bool = Field(
        default=True,
        description="Deterministic kernels only: a resumed run on one device ends with the same weights bit for bit. "
        "They cost time on a GPU.",
    )
    checkpoint_every_steps: PositiveInt | None = Field(
        description="Steps between checkpoints to resume from; null writes none, and a stopped run starts over."
    )
    log_every_steps: PositiveInt = Field(default=10, description="Steps between points of the loss curve.")
    seed: Seed = Field(
        default=0, description="Seed of the initial weights, of the order of the data and of what is drawn."
    )

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro batches that each rank adds up per optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.parallel.world_size)

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        together = self.micro_batch_size * self.parallel.world_size
        if self.global_batch_size % together:
            ranks = f" times {self.parallel.world_size} ranks" if self.parallel.world_size > 1 else ""
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}{ranks}: change one of them"
            )
        if self.checkpoint_every_steps and self.checkpoint_every_steps % self.log_every_steps:
            raise ValueError(
                f"checkpoint_every_steps {self.checkpoint_every_steps} is not a multiple of log_every_steps "
                f"{self.log_every_steps}: the loss curve of a resumed run would differ; change one of them"
            )
        if self.optimizer.warmup_steps >= self.max_steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} leaves none of max_steps {self.max_steps} "
                "for training: lower it"
            )
        return self


class Kernels(Section):
    """Which kernel serves a module; auto takes the fused one where it can run, and the artifact says which one did."""

    attention: Literal["auto", "flash_attn_4", "sdpa"] = Field(
        default="auto",
        description="attention without a bias: flash_attn_4 is fused for Hopper GPUs, sdpa PyTorch's.",
    )
    feed_forward: Literal["auto", "quack", "torch"] = Field(
        default="auto", description="SwiGLU and its experts: quack is fused for Hopper GPUs, torch plain PyTorch."
    )
    loss: Literal["auto", "triton_loss", "torch_loss"] = Field(
        default="auto", description="loss of effllm decoders: triton_loss is fused, torch_loss plain PyTorch."
    )
    relative: Literal["auto", "near_far", "chunked"] = Field(
        default="auto", description="position relative: near_far is fused, chunked plain PyTorch."
    )
    nsa: Literal["auto", "blocks", "gather"] = Field(
        default="auto", description="attention nsa: blocks is fused, gather plain PyTorch."
    )
    mamba: Literal["auto", "mamba_ssm", "mambapy"] = Field(
        default="auto", description="mamba: mamba_ssm is fused, with causal_conv1d; mambapy is plain PyTorch."
    )
    mamba2: Literal["auto", "mamba_ssm", "torch"] = Field(
        default="auto", description="mamba2: mamba_ssm is fused, with causal_conv1d; torch is plain PyTorch."
    )
    rwkv: Literal["auto", "fla", "loop"] = Field(default="auto", description="rwkv: fla is fused, loop plain PyTorch.")

    def wanted(self) -> dict[str, str]:
        """By module, what is asked for by name."""
        return {module: name for module, name in self.model_dump().items() if name != "auto"}


class Pacing(Section):
    """How soon harder windows join: the share of them, in their order, from which a step draws at random.

    After a share s of the steps, start + (1 - start) * (s / full_at)^exponent. What was drawn comes again once all that
    is there was drawn; where that never happens, the windows of the run are those of random order.
    """

    start: Annotated[Fraction, Field(gt=0)] = Field(description="Share from which the first step draws.")
    full_at: Annotated[Fraction, Field(gt=0)] = Field(description="Share of the steps after which all windows are in.")
    exponent: Annotated[PositiveFloat, Field(le=100)] = Field(
        default=1.0, description="1 is linear; more lets harder windows in later, less sooner: 2 quadratic, 0.5 a root."
    )


class Curriculum(Section):
    """In which order a run takes the windows that it would take at random."""

    by: Id = Field(description="Id of an entry of orders, for the run's tokens and sequence_length.")
    first: Literal["easy", "hard"] = Field(default="easy", description="Which windows come first.")
    pacing: Pacing | None = Field(
        default=None, description="Draw at random from a growing share of them; null takes one after the other."
    )
    segments: PositiveInt = Field(
        default=1,
        description="Deal the windows to so many segments in turn, and order each of them by itself. A run over k "
        "passes of the data takes k or a multiple, or the passes of a window follow each other.",
    )
    share: Annotated[Fraction, Field(gt=0)] = Field(
        default=1.0, description="Share of the steps that are ordered, the first ones; the others are in random order."
    )

    def steps(self, of: int) -> int:
        """How many of a run's steps are ordered."""
        return max(1, round(self.share * of))


class HeldOutCurve(Section):
    """Held-out losses on the way: what one run says of several token counts.

    The last point follows the last step, each other one half the steps of the next.
    """

    points: Annotated[PositiveInt, Field(ge=2, le=20)] = Field(description="Points of the curve.")
    tokens: Annotated[PositiveInt, Field(ge=2)] | None = Field(
        default=None, description="Score so many held-out tokens, the first ones; null scores all of them."
    )

    def steps(self, of: int) -> list[int]:
        """After which of a run's steps its points are."""
        return [of >> halvings for halvings in reversed(range(self.points))]


class RateByWidth(Section):
    """The learning rates of `optimizer` hold at one hidden_size; another has them times (hidden_size / width)^exponent.

    One rate for all weights: the 1 / width of muP (arXiv 2203.03466), which is for AdamW and for matrices between
    hidden layers, is applied to embeddings and norms too.
    """

    width: Dimension = Field(description="hidden_size for which the rates of `optimizer` were found.")
    exponent: Annotated[Float, Field(ge=-2, le=2)] = Field(
        default=-1.0, description="-1 halves the rates where the width doubles, 0 keeps them."
    )


class PretrainingRun(Recipe):
    """Training of one architecture from random weights on a token stream."""

    tokens: Id = Field(description="Id of the token stream.")
    sequence_length: Dimension = Field(description="Tokens per training sequence.")
    architecture: Architecture = Field(description="Shape of the model, by its model_type.")
    # Left out of the spec where there is none: it came later.
    order: Curriculum | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Order of the sequences; null is random."
    )
    kernels: Kernels = Field(
        default_factory=Kernels,
        description="Kernels by module: a fused one that is named and cannot run makes the run `unsupported`.",
    )
    # Left out of the spec where there is none, as the order is.
    held_out_curve: HeldOutCurve | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Score held-out text during training too; null scores it at the end.",
    )
    learning_rate_by_width: RateByWidth | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="How the rates of `optimizer` follow hidden_size; null takes them as they are.",
    )

    @property
    def scaled_optimizer(self) -> AdamW:
        """The optimizer with the learning rates that this width has."""
        rule = self.learning_rate_by_width
        if rule is None:
            return self.optimizer
        factor = (self.architecture.hidden_size / rule.width) ** rule.exponent
        rates = {key: factor * getattr(self.optimizer, key) for key in ("learning_rate", "minimum_learning_rate")}
        return self.optimizer.model_copy(update=rates)

    @model_validator(mode="after")
    def _has_points_after_the_warm_up(self) -> "PretrainingRun":
        if self.held_out_curve:
            first, warmup = self.held_out_curve.steps(self.max_steps)[0], self.optimizer.warmup_steps
            if first <= warmup:
                raise ValueError(
                    f"held_out_curve.points {self.held_out_curve.points} puts the first point after step {first}, "
                    f"within the warm-up of {warmup} steps: lower it"
                )
        return self

    @model_serializer(mode="wrap")
    def _only_chosen_kernels(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = serialize(self)
        content["kernels"] = self.kernels.wanted()
        return {key: value for key, value in content.items() if key != "kernels" or value}

    @model_validator(mode="after")
    def _has_what_kernels_name(self) -> "PretrainingRun":
        shape = self.architecture
        modules = {shape.model_type, getattr(shape, "attention", None), getattr(shape, "position", None)}
        modules |= {"loss"} if shape.model_type == "effllm" else set()
        for module, name in self.kernels.wanted().items():
            if module not in modules:
                raise ValueError(f"kernels.{module}: {name} names a kernel of what this architecture lacks: drop it")
        return self

    @model_validator(mode="after")
    def _has_steps_for_segments(self) -> "PretrainingRun":
        if self.order and self.order.segments > (steps := self.order.steps(self.max_steps)):
            raise ValueError(
                f"order.segments {self.order.segments} exceeds the {steps} steps that are ordered: lower it"
            )
        return self

    @model_validator(mode="after")
    def _has_positions(self) -> "PretrainingRun":
        longest = self.architecture.longest_sequence
        if longest is not None and self.sequence_length > longest:
            raise ValueError(
                f"sequence_length {self.sequence_length} exceeds max_position_embeddings {longest}: raise it in the "
                "architecture"
            )
        return self
