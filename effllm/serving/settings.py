"""The section of a study that says how models are served and measured. Nothing here imports torch."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from effllm.fields import (
    Dimension,
    Fraction,
    PositiveFloat,
    PositiveInt,
    SamplePeriod,
    Seconds,
    Section,
    Seed,
    repeated,
)
from effllm.models.placement import Need, need_of
from effllm.serving.engines import AnyEngine
from effllm.serving.load import Load

DEFAULT_FRACTIONS = (0.25, 0.5, 0.75, 0.9)
CLOSED = "closed"
REPLAYED = "replayed"
SATURATED = "saturated"


class Saturation(Section):
    """How the saturated rate is found: closed loops of more and more requests, until more of them gain little."""

    concurrency: Dimension = Field(description="Requests under way in the first loop; the next has twice as many.")
    maximum_concurrency: Dimension = Field(description="Requests under way in the last loop, at most.")
    gain: Fraction = Field(
        default=0.1, description="The loop that gains less than this over the one before is the last."
    )
    rounds: Annotated[Dimension, Field(ge=3)] = Field(
        default=4, description="Requests of a loop, in multiples of those under way: the first and last do not count."
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> "Saturation":
        if self.maximum_concurrency < self.concurrency:
            raise ValueError(
                f"maximum_concurrency {self.maximum_concurrency} is below concurrency {self.concurrency}: raise it"
            )
        return self


class Serving(Section):
    """A model under load: the engine that serves it, the requests, and the protocol of the measurement."""

    engine: AnyEngine = Field(description="What serves.")
    load: Load = Field(description="When requests come, and how long they are.")
    saturation: Saturation | None = Field(
        default=None,
        description="How the saturated rate is found; null for a closed loop or a replayed trace, which has no rate.",
    )
    fractions: Annotated[list[Annotated[PositiveFloat, Field(le=1)]], Field(min_length=1)] = Field(
        default=list(DEFAULT_FRACTIONS), description="Rates that are measured, as parts of the saturated rate."
    )
    requests: Dimension = Field(
        default=200, description="Requests that count at each rate. A percentile of 99 needs a hundred."
    )
    warmup_requests: Dimension = Field(default=20, description="Requests of each rate before those that count.")
    compared_requests: Dimension = Field(
        default=8, description="Requests whose greedy outputs are compared with those of each alone."
    )
    patience_s: Annotated[Seconds, Field(gt=0)] = Field(
        default=120.0, description="An engine that gives no token for so long is taken to hang."
    )
    idle_s: Annotated[Seconds, Field(gt=0)] = Field(
        default=10.0, description="Seconds of rest with the engine started: the baseline of power."
    )
    cooldown_s: Seconds = Field(default=2.0, description="Seconds of rest before each rate.")
    sample_period_s: SamplePeriod = Field(default=0.1, description="Period of the telemetry sampler in seconds.")
    seed: Seed = Field(default=0, description="Seed of the requests.")

    @field_validator("fractions")
    @classmethod
    def _ascend(cls, fractions: list[float]) -> list[float]:
        if any(after <= before for before, after in itertools.pairwise(fractions)):
            raise ValueError(f"{fractions} do not ascend: list each fraction once, the smallest first")
        if same := repeated(f"{fraction:g}" for fraction in fractions):
            raise ValueError(f"{same[0]} is there twice by its first six digits, which name the load: drop one of them")
        return fractions

    @model_validator(mode="after")
    def _fits(self) -> "Serving":
        if self.load.has_rate == (self.saturation is None):
            raise ValueError(
                "saturation: a load with arrivals at a rate states how the saturated rate is found, and a closed loop "
                "or a replayed trace has none: add it, or drop it"
            )
        if misfit := self.engine.misfit(self.load):
            raise ValueError(f"engine: {misfit}")
        return self

    @property
    def rate_ids(self) -> dict[str, float]:
        """The parts of the saturated rate that are measured, by the id of the load."""
        return {f"{fraction:g}": fraction for fraction in self.fractions}

    def load_ids(self) -> list[str]:
        """Ids of the loads that a result has."""
        return [SATURATED, *self.rate_ids] if self.load.has_rate else [self.only_id]

    @property
    def only_id(self) -> str:
        """The id of the one load that is measured where there is no rate."""
        return REPLAYED if self.load.arrivals.kind == "replayed" else CLOSED


class ServeConfig(Serving):
    """The stage's slice of the study: the section, and the GPUs that the study asks for."""

    devices: PositiveInt | None = Field(default=None, description="GPUs of one host; null: as many as it needs.")


def serving_need(weights_b: float, directory: Path, serving: Serving) -> Need:
    """What serving the model in `directory` needs of the GPUs."""
    engine = serving.engine
    tokens = engine.cached_tokens() or serving.load.longest
    need = need_of(weights_b, directory, [(1, engine.batch_tokens(), tokens)])
    given_b = engine.cache_b()
    return need if given_b is None else replace(need, caches_b=given_b)
