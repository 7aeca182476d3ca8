"""Figures of a load: percentiles of latencies with their intervals, and rates."""

from typing import ClassVar

from pydantic import Field, RootModel

from effllm.results.base import Figures, Part, ResultFile


class Percentile(Figures):
    """One percentile in ms; null where too few requests tell of it."""

    value_ms: float | None = Field(description="The percentile, interpolated between the two latencies beside it.")
    low_ms: float | None = Field(description="Lower end of its 95 % interval, an order statistic.")
    high_ms: float | None = Field(description="Upper end.")


class Percentiles(Part):
    """The percentiles of one latency."""

    p50: Percentile = Field(description="The median.")
    p90: Percentile = Field(description="What nine of ten stay below.")
    p99: Percentile = Field(description="What 99 of a hundred stay below.")


class LoadFigures(Part):
    """Latencies and rates of the requests of one load, from their scheduled arrivals."""

    requests: int = Field(description="Requests that arrived.")
    completed: int = Field(description="Those of them that got every token.")
    duration_s: float = Field(description="From the first scheduled arrival to the last token, in s.")
    requests_per_s: float = Field(description="Completed requests over the duration.")
    input_tokens_per_s: float = Field(description="Tokens of their prompts over the duration.")
    output_tokens_per_s: float = Field(description="Tokens that were generated for them over the duration.")
    ttft: Percentiles = Field(description="Time to the first token.")
    tpot: Percentiles = Field(description="Time from the first to the last token over the tokens after the first.")
    itl: Percentiles = Field(description="Times between arrivals of tokens, those of all requests together.")
    e2e: Percentiles = Field(description="Time to the last token.")


class RequestLatencies(Part):
    """Latencies by request, in ms and in the order of arrival; null for a request that failed."""

    ttft_ms: list[float | None] = Field(description="Time to the first token.")
    tpot_ms: list[float | None] = Field(
        description="Time of a token after the first; null also for a request with one token."
    )
    e2e_ms: list[float | None] = Field(description="Time to the last token.")


class ServedRequests(ResultFile, RootModel[dict[str, RequestLatencies]]):
    """Latencies of every request that was measured, by the id of its rate."""

    FILE: ClassVar[str] = "requests.json"
