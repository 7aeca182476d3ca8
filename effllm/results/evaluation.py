"""evaluation.json and clusters.json: the scores of a model on a benchmark, and what they cost."""

from typing import Any, ClassVar, Literal

from pydantic import Field, RootModel

from effllm.results.base import Figures, Interval, Number, Part, ResultFile
from effllm.results.telemetry import TelemetrySummary

Role = Literal["accuracy", "perplexity"]
Kind = Literal["held_out", "harness", "human_eval", "hard_math"]


class MetricScore(Part):
    """One metric of lm-eval."""

    value: float | None = Field(description="In the metric's own unit.")
    stderr: float | None = Field(description="lm-eval's standard error.")


class TaskScore(Part):
    """The score of one task of the benchmark."""

    score: float | None = Field(description="The benchmark's metric over this task.")
    stderr: float | None = Field(description="lm-eval's standard error.")
    items: int = Field(description="Items that were scored.")
    n_shot: int | None = Field(description="Examples in the prompt.")
    version: Number | str | None = Field(description="The task's version in lm-eval.")


class Scores(Figures):
    """What lm-eval's results say."""

    score: float = Field(description="The benchmark's metric: a share of right answers, or a perplexity.")
    stderr: float | None = Field(description="Its standard error.")
    stderr_source: str | None = Field(description="Where that is from.")
    ci95: Interval | None = Field(description="The score's 95 % interval.")
    ci95_method: str | None = Field(description="How that was made.")
    metric: str = Field(description="lm-eval's key: metric and filter.")
    items: int = Field(description="Items that were scored.")
    metrics: dict[str, MetricScore] = Field(description="All metrics that lm-eval computed, by key.")
    tasks: dict[str, TaskScore] = Field(description="The benchmark's tasks, by name.")


class RequestCost(Part):
    """What requests to the model cost."""

    requests: int = Field(description="How many there were.")
    truncated_requests: int = Field(description="Of those, longer than the context: their prompts were cut.")
    scored_tokens: int = Field(description="Tokens that were given and scored.")
    generated_tokens: int = Field(description="Tokens that were decoded, up to and with an end-of-text token.")
    model_calls: int = Field(description="Calls of forward and generate.")
    model_seconds: float = Field(description="Time within them in s, device work included.")


class ChatRecord(Part):
    """Prompts in the model's chat template."""

    fewshot_as_multiturn: bool = Field(description="Whether examples are turns of their own.")
    system_instruction: str | None = Field(description="What the system's turn begins with; null for nothing.")
    end_token_ids: list[int] = Field(
        description="Where an answer ends: the tokenizer's end-of-text token, and what the model's files name besides."
    )


class EvaluationCost(RequestCost):
    """What the whole evaluation cost."""

    latency_mean_ms: float = Field(description="AL: model time per request in ms, at this batch size.")
    latency_definition: str = Field(description="The same as a formula.")
    wall_seconds: float = Field(description="With making of prompts, tokenization and scoring, in s.")
    by_kind: dict[str, RequestCost] = Field(description="By lm-eval's kind of request.")
    batch_size: int = Field(description="Requests per call, as they were run in the end; of several kinds the least.")
    batch_halvings: int = Field(default=0, description="How often memory ran out, which halves the batch.")
    threads: int = Field(description="Threads of torch.")
    device: str = Field(description="cpu, or cuda and its index.")


class Divergence(Figures):
    """How far a model's next-token distributions are from those of the same weights in another precision.

    Over the same tokens of the benchmark's documents; errors and intervals are those of means over documents.
    """

    reference: str = Field(description="Id of the other precision.")
    documents: int = Field(description="Documents that were compared.")
    tokens: int = Field(description="Tokens at which the distributions were compared.")
    kl_nats: float | None = Field(
        description="Mean over tokens of the Kullback-Leibler divergence of this model's distribution from the "
        "reference's, in nats: sum of p log(p / q), p the reference's."
    )
    kl_nats_stderr: float | None = Field(description="Its standard error.")
    kl_nats_ci95: Interval | None = Field(description="Its 95 % interval, Student's t over documents.")
    perplexity: float | None = Field(description="Per token.")
    reference_perplexity: float | None = Field(description="The reference's.")
    nll_change_nats: float | None = Field(
        description="Mean over tokens of the negative log-likelihood less the reference's: the logarithm of the ratio "
        "of perplexities."
    )
    nll_change_nats_stderr: float | None = Field(description="Its standard error, paired.")
    perplexity_ratio: float | None = Field(description="perplexity over reference_perplexity.")
    perplexity_ratio_ci95: Interval | None = Field(description="Its 95 % interval, paired.")
    same_top_token: float | None = Field(description="Share of tokens at which both hold the same token for likeliest.")


class Evaluation(Scores, ResultFile):
    """The scores of one model in one precision on one benchmark."""

    FILE: ClassVar[str] = "evaluation.json"

    task: str = Field(description="The benchmark's task or group.")
    kind: Kind = Field(description="As the study calls the benchmark's kind.")
    higher_is_better: bool = Field(description="Of the score.")
    role: Role = Field(description="Whether the score counts in means.")
    chance_level: float = Field(description="The score of guessing.")
    chance_meaning: str = Field(description="What guessing is.")
    limit: int | None = Field(description="Items per task; null for all.")
    clusters: int | None = Field(default=None, description="Texts that items were made from, if they name them.")
    lm_eval_version: str = Field(description="The harness.")
    transformers_version: str = Field(description="The library that ran the model.")
    seed: int = Field(description="Of few-shot examples and of what tasks draw.")
    max_length: int = Field(description="The longest input in tokens.")
    log_probability_dtype: str = Field(description="The type in which log-probabilities were computed.")
    chat: ChatRecord | None = Field(
        default=None, description="How prompts were put into the model's chat template; left out for plain text."
    )
    ignored_generation_settings: dict[str, Any] = Field(
        default_factory=dict, description="What the model's files ask of generation, which was not followed."
    )
    divergence: Divergence | None = Field(
        default=None,
        description="Against the precision that evaluation.divergence_from names; left out where nothing is compared.",
    )
    cost: EvaluationCost = Field(description="What the requests cost.")
    telemetry: TelemetrySummary = Field(description="Of the whole evaluation.")


class Clusters(ResultFile, RootModel[dict[str, list[Number]]]):
    """[sum of the metric, items] by the text that items were made from."""

    FILE: ClassVar[str] = "clusters.json"
