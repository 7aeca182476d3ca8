"""serving.json: latency, throughput, energy and memory of a model that is served, by load."""

from typing import Any, ClassVar

from pydantic import Field, RootModel

from effllm.errors import Status
from effllm.results.base import Figures, Part, ResultFile
from effllm.results.latency import LoadFigures
from effllm.results.telemetry import DeviceInfo, Finding, TelemetrySummary


class ServingEngine(Part):
    """An engine as it ran."""

    kind: str = Field(description="Its kind in the study.")
    version: str = Field(description="Its version.")
    device: str = Field(description="Where it computes, as it says.")
    dtype: str | None = Field(description="The type that it computes in; null where it does not say.")
    flags: dict[str, Any] = Field(description="The settings that it ran with, those of its own choice included.")
    in_process: bool = Field(description="Whether it ran in the process that sent the requests.")


class GreedyCheck(Part):
    """Greedy outputs of requests that were served together, against those of each alone."""

    against: str = Field(description="How the model was asked alone.")
    requests: int = Field(description="Requests that were compared; 0 where the engine gives no ids of tokens.")
    identical: int = Field(description="Those whose tokens are all the same.")
    first_identical: int = Field(description="Those whose first token is the same.")


class SaturationStep(Part):
    """A closed loop: so many requests under way at once."""

    concurrency: int = Field(description="Requests under way.")
    requests_per_s: float = Field(description="Requests answered, by the tokens that came while all were under way.")
    output_tokens_per_s: float = Field(description="Those tokens over the time.")


class ServingEnergy(Figures):
    """Energy of the measured requests' time, over the tokens that were generated in it."""

    energy_j_per_output_token: float | None = Field(description="All of the energy.")
    energy_above_idle_j_per_output_token: float | None = Field(description="What exceeds the idle device's power.")


class EngineLoad(Figures):
    """What the engine said of itself meanwhile, a few times a second."""

    cache_mean_fraction: float | None = Field(description="Part of its cache that was taken, mean.")
    cache_peak_fraction: float | None = Field(description="The highest.")
    running_mean: float | None = Field(description="Requests that were computed, mean.")
    running_peak: int | None = Field(description="The most.")
    waiting_peak: int | None = Field(description="Most requests that waited for a place.")
    preemptions: int | None = Field(description="Times that a request was put back for lack of cache.")


class ServingRoofline(Figures):
    """How near the engine is to what memory allows: bytes that must be read, by the median time between tokens."""

    decode_bytes_per_step: float | None = Field(
        description="Bytes of a step: the weights, and the cache of as many requests as get a token in it."
    )
    decode_mbu: float | None = Field(description="These bytes over that time, as part of the peak of the memory.")


class ServedLoad(Part):
    """One load: a rate, a closed loop or a replay. Null figures, with status and reason, where it has none."""

    status: Status = Field(description="ok, or why it must not be ranked.")
    reason: str | None = Field(description="The errors among the findings.")
    findings: list[Finding] = Field(description="What the plausibility rules say.")
    fraction: float | None = Field(description="Asked: part of the saturated rate; null where there is none.")
    requests_per_s: float | None = Field(description="Asked: requests that arrive a second; null for a closed loop.")
    concurrency: int | None = Field(description="Requests under way at once; null where they arrive at a rate.")
    warmup_requests: int = Field(description="Requests before those that count.")
    errors: dict[str, int] = Field(description="Requests that failed, by what was said.")
    figures: LoadFigures | None = Field(description="Latencies and rates of the requests that count.")
    window_output_tokens: int = Field(description="Tokens that came in the window of the telemetry.")
    dispatch_lag_p99_ms: float = Field(description="How late requests were sent.")
    client_cpu_fraction: float = Field(description="Share of a core that sending and receiving took.")
    engine: EngineLoad = Field(description="How full the engine was.")
    energy: ServingEnergy = Field(description="Energy a token.")
    roofline: ServingRoofline | None = Field(default=None, description="Its distance from what memory allows.")
    telemetry: TelemetrySummary = Field(description="What the instruments say of the requests that count.")


class Serving(Part, ResultFile):
    """One model in one precision under loads."""

    FILE: ClassVar[str] = "serving.json"

    device: DeviceInfo = Field(description="What it ran on.")
    cpus_usable: int = Field(description="Cores that the process could use.")
    threads: int = Field(description="Threads of torch in this process.")
    engine: ServingEngine = Field(description="What served.")
    protocol: dict[str, Any] = Field(description="How it was measured, as the study states it.")
    idle: TelemetrySummary = Field(description="The device with the engine started and nothing to do.")
    greedy: GreedyCheck = Field(description="Whether serving changes what the model says.")
    saturation: list[SaturationStep] = Field(description="Closed loops by which the saturated rate was found.")
    saturated_requests_per_s: float | None = Field(description="The best of them; null where none was asked for.")
    loads: dict[str, ServedLoad] = Field(description="Loads by id: the fraction of the saturated rate, or closed.")


class CompletedRequest(Part):
    """What became of one request; times in s from the start of its trace."""

    @property
    def counts(self) -> list[int]:
        """How many tokens came each time."""
        return [1] * len(self.token_times_s) if self.token_counts is None else self.token_counts

    scheduled_s: float = Field(description="When it was to arrive.")
    dispatched_s: float = Field(description="When it was sent.")
    prompt_tokens: int = Field(description="Tokens of its prompt.")
    token_times_s: list[float] = Field(description="When tokens came.")
    token_counts: list[int] | None = Field(description="How many came each time; null for one each.")
    error: str | None = Field(description="Why it was not answered.")


class CompletedRequests(ResultFile, RootModel[dict[str, list[CompletedRequest]]]):
    """Every request that was sent, those of warm-ups too, by load."""

    FILE: ClassVar[str] = "records/completions.json"
