"""Benchmarks, the evaluation and profiling protocols, and the tables."""

from typing import Annotated, Literal

from pydantic import Field

from effllm.study.base import Count, Fraction, Id, PlainId, PositiveFloat, PositiveInt, Revision, Section


class HarnessBenchmark(Section):
    """A task or group of lm-evaluation-harness, its data fetched from the hub at a pinned revision."""

    kind: Literal["harness"]
    task: str = Field(description="Name of the task or group in lm-eval, such as leaderboard_mmlu_pro.")
    revision: Revision = Field(description="Commit of the task's dataset repository, 40 hexadecimal digits.")
    metric: str = Field(description="The score, as lm-eval names it: acc, acc_norm, exact_match, ...")
    chance_level: Fraction = Field(description="Expected score of guessing.")
    label: str | None = Field(default=None, description="Name in the tables; null prints the id.")
    limit: PositiveInt | None = Field(default=None, description="Documents per task; null takes all.")


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
    seed: Count = Field(default=0, description="Seed of the choice of items and of their alterations.")
    label: str | None = Field(default=None, description="Name in the tables; null prints the id.")


Benchmark = Annotated[HarnessBenchmark | HeldOutBenchmark, Field(discriminator="kind")]


class EvaluationProtocol(Section):
    """How every benchmark is run."""

    batch_size: PositiveInt = Field(description="Requests per forward pass.")
    max_length: PositiveInt | None = Field(
        default=None, description="Longest input in tokens; null takes the model's own limit."
    )
    bootstrap_iters: Count = Field(
        default=1000, description="Bootstrap resamples for standard errors that have no closed form."
    )
    sample_period_s: PositiveFloat = Field(default=0.1, description="Period of the telemetry sampler in seconds.")
    seed: Count = Field(default=0, description="Seed of few-shot sampling.")


class InferenceProtocol(Section):
    """The fixed workload by which precisions are compared: greedy decoding of a set number of tokens."""

    prompt_tokens: Annotated[int, Field(ge=1)] = Field(description="Tokens in the prompt.")
    new_tokens: Annotated[int, Field(ge=2)] = Field(description="Tokens generated, minimum and maximum alike.")
    batch_size: PositiveInt = Field(default=1, description="Sequences decoded together.")
    warmup_repeats: PositiveInt = Field(description="Repeats before the first measured one.")
    repeats: Annotated[int, Field(ge=2)] = Field(description="Measured repeats; two or more give an interval.")
    sample_period_s: PositiveFloat = Field(default=0.1, description="Period of the telemetry sampler in seconds.")
    seed: Count = Field(default=0, description="Seed of the prompt's random tokens.")


class QuantizationTable(Section):
    """Table 9 (a row per model and precision) or Table 16 (the same by benchmark)."""

    models: Annotated[list[Id], Field(min_length=1)] = Field(description="Model ids, in the order of the rows.")
    precisions: Annotated[list[PlainId], Field(min_length=1)] = Field(
        description="Precision ids, in the order of the rows."
    )
    benchmarks: Annotated[list[PlainId], Field(min_length=1)] = Field(
        description="Benchmark ids, in the order of the columns."
    )
    baseline: PlainId = Field(description="Precision against which compression is measured.")


class Tables(Section):
    """The tables of the study, by the paper's numbers."""

    table9: QuantizationTable | None = Field(default=None, description="Quantization.")
    table16: QuantizationTable | None = Field(default=None, description="Quantization by benchmark.")
