"""Benchmarks, and the protocols of evaluation and profiling."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import (
    Count,
    Dimension,
    Fraction,
    Id,
    PlainId,
    PositiveFloat,
    PositiveInt,
    Revision,
    SamplePeriod,
    Seconds,
    Section,
    Seed,
    Text,
)
from effllm.study.code_tasks import HumanEvalBenchmark
from effllm.study.math_tasks import HardMathBenchmark


class HarnessBenchmark(Section):
    """A task or group of lm-evaluation-harness, its data fetched from the hub at a pinned revision."""

    kind: Literal["harness"]
    task: Text = Field(description="Name of the task or group in lm-eval, such as leaderboard_mmlu_pro.")
    revision: Revision = Field(description="Commit of the task's dataset repository, 40 hexadecimal digits.")
    metric: Text = Field(description="The score, as lm-eval names it: acc, acc_norm, exact_match, ...")
    chance_level: Fraction = Field(description="Expected score of guessing.")
    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")
    limit: PositiveInt | None = Field(default=None, description="Documents per task; null takes all.")

    takes_chat: ClassVar[bool] = True


class HeldOutBenchmark(Section):
    """A task made from the held-out part of a corpus, scored by lm-evaluation-harness without the hub."""

    kind: Literal["held_out"]
    corpus: Id = Field(description="Id of the corpus.")
    task: Literal["word_order", "adjacent_swap", "word_substitution", "next_word", "perplexity"] = Field(
        description="word_order: a sentence against three shuffles. adjacent_swap: against one swap of "
        "neighbours. word_substitution: against one word replaced by another of like frequency. next_word: "
        "generate the last word. perplexity: rolling log-likelihood of whole documents."
    )
    items: PositiveInt = Field(description="Number of items; an error if the held-out text has fewer.")
    seed: Seed = Field(default=0, description="Seed of the choice of items and of their alterations.")
    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")

    # What is scored is a text of the corpus, which is no answer to anybody.
    takes_chat: ClassVar[bool] = False


Benchmark = Annotated[
    HarnessBenchmark | HeldOutBenchmark | HumanEvalBenchmark | HardMathBenchmark, Field(discriminator="kind")
]


def _is_number_or_auto(value: Any) -> Any:
    # One sentence for the two types: pydantic would have one for each.
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{value!r:.40} is no batch: give a number of requests, 1 or more, or auto")
    return value


BatchSize = Annotated[Dimension | Literal["auto"], BeforeValidator(_is_number_or_auto)]


class EvaluationProtocol(Section):
    """How every benchmark is run."""

    batch_size: BatchSize = Field(
        description="Requests per forward pass; auto takes as many as memory holds, at most 64 long ones."
    )
    max_length: Dimension | None = Field(
        default=None, description="Longest input in tokens; null takes the model's own limit."
    )
    shares_prefixes: bool = Field(
        default=False,
        description="Whether the model reads once what prompts begin with alike: several times as fast with few-shot "
        "prompts, and log-likelihoods differ from lm-eval's by rounding.",
    )
    divergence_from: PlainId | None = Field(
        default=None,
        description="Precision with which every other one of a model is compared token by token on held-out text "
        "(benchmarks of task perplexity): KL divergence of the next-token distributions and ratio of perplexities. "
        "null compares none. Both models are on the device for that.",
    )
    bootstrap_iters: Annotated[Count, Field(le=1_000_000)] = Field(
        default=1000, description="Bootstrap resamples for standard errors that have no closed form."
    )
    sample_period_s: SamplePeriod = Field(default=0.1, description="Period of the telemetry sampler in seconds.")
    seed: Seed = Field(
        default=0,
        description="Seed of few-shot sampling, and of what tasks draw at random while they load and score: GPQA "
        "shuffles the choices of its items.",
    )


# Patches a side of the towers that scale every image to one size (LLaVA-1.5's), and pixels of a patch elsewhere.
_LEAST_PATCHES, _PATCH = 24, 14
_IMAGE_KEYS = ("images", "image_size")


class Workload(Section):
    """Greedy decoding of a set number of tokens from a prompt of random tokens, or of images and random tokens."""

    prompt_tokens: Dimension = Field(description="Tokens in the prompt.")
    new_tokens: Annotated[Dimension, Field(ge=2)] = Field(description="Tokens generated, minimum and maximum alike.")
    batch_size: Dimension = Field(default=1, description="Sequences decoded together.")
    images: Annotated[Count, Field(le=64)] = Field(
        default=0,
        description="Images of noise before each prompt, for vision-language models; their encoding is timed apart. "
        "Other models are unsupported in such a workload.",
    )
    image_size: Dimension | None = Field(default=None, description="Height and width of these images in pixels.")
    cuda_graph: bool = Field(
        default=False,
        description="Record prefill and decoding step as CUDA graphs over a static cache and replay them: the GPU's "
        "own speed. false lets Transformers generate, where at small batches the host's dispatch sets the pace.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the decoding step before it is recorded, by torch.compile with kernels tuned on the GPU: "
        "a minute or more, and fewer and better kernels. Needs cuda_graph.",
    )

    @model_validator(mode="after")
    def _compiles_what_is_recorded(self) -> "Workload":
        if self.compile and not self.cuda_graph:
            raise ValueError("compile: true is for decoding by CUDA graphs: add cuda_graph: true, or drop compile")
        return self

    @model_validator(mode="after")
    def _images_have_a_size(self) -> "Workload":
        if bool(self.images) != (self.image_size is not None):
            missing, given = ("image_size", "images") if self.images else ("images", "image_size")
            raise ValueError(f"{missing} is missing beside {given}: give both, or neither")
        if self.images and self.cuda_graph:
            raise ValueError("cuda_graph: a graph of decoding is of text alone: drop cuda_graph, or the images")
        return self

    @property
    def prompt_tokens_at_most(self) -> int:
        """Tokens of the prompt with those of its images, of which there are as many as the model's processor makes."""
        sides = max(_LEAST_PATCHES, -(-(self.image_size or 0) // _PATCH))
        return self.prompt_tokens + self.images * sides**2

    @model_serializer(mode="wrap")
    def _only_what_is_used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As it was before there were these keys.
        content = serialize(self)
        return {key: value for key, value in content.items() if key not in ("compile", *_IMAGE_KEYS) or value}


class InferenceProtocol(Section):
    """How the fixed workloads are measured by which precisions are compared."""

    workloads: Annotated[dict[PlainId, Workload], Field(min_length=1)] = Field(description="Workloads by id.")
    idle_s: Annotated[Seconds, Field(gt=0)] = Field(
        description="Seconds of rest with the model loaded: the baseline of power."
    )
    warmup_minimum: Annotated[Dimension, Field(ge=3)] = Field(
        default=3, description="Generations before a measurement, at least."
    )
    warmup_maximum: PositiveInt = Field(
        description="Generations after which the warm-up ends even if times have not settled; a warning then."
    )
    warmup_tolerance: Annotated[Fraction, Field(gt=0)] = Field(
        default=0.1, description="The last three times have settled when they span at most this share of their median."
    )
    repeats: Annotated[Dimension, Field(ge=2)] = Field(
        description="Measured windows per workload and phase, in an order shuffled over both."
    )
    minimum_window_s: Annotated[Seconds, Field(gt=0)] = Field(
        description="Shortest window in seconds: as many generations as it takes. Power sensors want 30."
    )
    cooldown_s: Seconds = Field(description="Seconds of rest between windows.")
    maximum_relative_interval: PositiveFloat = Field(
        description="A row is invalid if the 95 % interval of its latency reaches further than this share of the mean."
    )
    sample_period_s: SamplePeriod = Field(default=0.1, description="Period of the telemetry sampler in seconds.")
    seed: Seed = Field(default=0, description="Seed of the prompts and of the order of windows.")

    @model_validator(mode="after")
    def _warms_up(self) -> "InferenceProtocol":
        if self.warmup_maximum < self.warmup_minimum:
            raise ValueError(
                f"warmup_maximum {self.warmup_maximum} is below warmup_minimum {self.warmup_minimum}: raise it"
            )
        return self
