"""What a load is: how requests arrive, how long they are, what they share."""

import math
import statistics
from typing import Annotated, Literal

from pydantic import Field, model_validator

from effllm.fields import Dimension, Fraction, PositiveFloat, Section, Text

_LEAST_SHARE = 1e-3


class PoissonArrivals(Section):
    """Independent arrivals: gaps of an exponential distribution."""

    kind: Literal["poisson"]


class GammaArrivals(Section):
    """Gaps of a gamma distribution."""

    kind: Literal["gamma"]
    burstiness: PositiveFloat = Field(
        description="Shape of the distribution: 1 is Poisson, below 1 arrivals come in bursts, above 1 evenly. Gaps "
        "have the coefficient of variation 1 / sqrt(burstiness)."
    )


class ConstantArrivals(Section):
    """One request after the other at equal gaps."""

    kind: Literal["constant"]


class ClosedLoopArrivals(Section):
    """A set number of requests under way: each that ends lets the next one begin."""

    kind: Literal["closed_loop"]
    concurrency: Dimension = Field(description="Requests under way at once.")


class RecordedArrivals(Section):
    """The times of the trace file, stretched or compressed to the rate that is measured."""

    kind: Literal["recorded"]


class ReplayedArrivals(Section):
    """The requests of the trace file once, at their own times, or in the closed loop that they were sent in."""

    kind: Literal["replayed"]


Arrivals = Annotated[
    PoissonArrivals | GammaArrivals | ConstantArrivals | ClosedLoopArrivals | RecordedArrivals | ReplayedArrivals,
    Field(discriminator="kind"),
]


class FixedLength(Section):
    """The same number of tokens in every request."""

    kind: Literal["fixed"]
    tokens: Dimension = Field(description="Tokens.")

    @property
    def longest(self) -> int:
        """Most tokens that a request can have."""
        return self.tokens


class UniformLength(Section):
    """Every number of tokens in a range alike."""

    kind: Literal["uniform"]
    least: Dimension = Field(description="Fewest tokens.")
    most: Dimension = Field(description="Most tokens, included.")

    @model_validator(mode="after")
    def _is_a_range(self) -> "UniformLength":
        _check_range(self.least, self.most)
        return self

    @property
    def longest(self) -> int:
        """Most tokens that a request can have."""
        return self.most


class LognormalLength(Section):
    """Lengths whose logarithm is normally distributed, rounded; what is out of range is drawn again."""

    kind: Literal["lognormal"]
    median: Dimension = Field(description="Median in tokens before the range is applied.")
    sigma: Annotated[PositiveFloat, Field(le=10)] = Field(description="Standard deviation of the natural logarithm.")
    least: Dimension = Field(default=1, description="Fewest tokens.")
    most: Dimension = Field(description="Most tokens, included.")

    @model_validator(mode="after")
    def _is_a_range(self) -> "LognormalLength":
        _check_range(self.least, self.most)
        if not self.least <= self.median <= self.most:
            raise ValueError(f"median {self.median} is not between least {self.least} and most {self.most}: change it")
        below, above = (self._share_below(tokens) for tokens in (self.least - 0.5, self.most + 0.5))
        if above - below < _LEAST_SHARE:
            raise ValueError(
                f"least {self.least} and most {self.most} hold {above - below:.2g} of the distribution, and what is "
                "out of range is drawn again: widen the range, lower sigma, or choose uniform or fixed"
            )
        return self

    def _share_below(self, tokens: float) -> float:
        return statistics.NormalDist(math.log(self.median), self.sigma).cdf(math.log(tokens))

    @property
    def longest(self) -> int:
        """Most tokens that a request can have."""
        return self.most


Length = Annotated[FixedLength | UniformLength | LognormalLength, Field(discriminator="kind")]


class TraceFile(Section):
    """A file of recorded requests, of which lengths and, if wanted, times are taken."""

    format: Literal["azure", "effllm", "mooncake"] = Field(
        description="azure: CSV with TIMESTAMP, ContextTokens and GeneratedTokens. mooncake: JSON lines with "
        "timestamp (ms), input_length, output_length and hash_ids, by which requests share blocks of 512 tokens. "
        "effllm: a file of traces/ of an earlier result, whose prompts are sent as they are."
    )
    path: Text = Field(description="The file.")
    length_factor: PositiveFloat = Field(
        default=1.0, description="Factor of all lengths, for models whose context is smaller than the trace's."
    )
    most_prompt_tokens: Dimension = Field(
        description="Requests with a longer prompt (after length_factor) are left out."
    )
    most_output_tokens: Dimension = Field(
        description="Requests with a longer output (after length_factor) are left out."
    )


class SharedPrefix(Section):
    """A common beginning, such as a system prompt, of a part of the requests."""

    share: Fraction = Field(description="Share of the requests whose prompt begins with a common prefix.")
    tokens: Dimension = Field(description="Its tokens, of those of the prompt.")
    prefixes: Dimension = Field(default=1, description="How many different prefixes there are.")


class Load(Section):
    """Requests by their times, lengths and common prefixes: from distributions or from a trace file."""

    arrivals: Arrivals = Field(description="When requests arrive.")
    prompt_tokens: Length | None = Field(default=None, description="Tokens of prompts; null where a trace says it.")
    output_tokens: Length | None = Field(default=None, description="Tokens generated; null where a trace says it.")
    trace: TraceFile | None = Field(default=None, description="A trace that gives lengths; null draws them.")
    shared_prefix: SharedPrefix | None = Field(default=None, description="What prompts have in common; null nothing.")

    @model_validator(mode="after")
    def _lengths_have_one_source(self) -> "Load":
        drawn = {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}
        if self.trace is None:
            if absent := [key for key, length in drawn.items() if length is None]:
                raise ValueError(f"{' and '.join(absent)}: a load without a trace states its lengths: add them")
            if self.arrivals.kind in ("recorded", "replayed"):
                kind = self.arrivals.kind
                raise ValueError(f"arrivals: {kind} times come from a trace file: add trace, or choose poisson")
        else:
            if given := [key for key, length in drawn.items() if length is not None]:
                raise ValueError(f"{' and '.join(given)}: the trace gives the lengths: drop either of the two")
            if self.shared_prefix and self.trace.format == "mooncake":
                raise ValueError("shared_prefix: hash_ids of the trace say what its prompts share: drop shared_prefix")
            if self.trace.format == "effllm":
                self._is_sent_as_it_is(self.trace)
        shared, prompts = self.shared_prefix, self.prompt_tokens
        if shared and prompts:
            least = prompts.tokens if prompts.kind == "fixed" else prompts.least
            if shared.tokens >= least:
                raise ValueError(
                    f"shared_prefix.tokens {shared.tokens} leaves nothing of the shortest prompt, {least} tokens, to "
                    "the request itself: lower it"
                )
        return self

    def _is_sent_as_it_is(self, trace: TraceFile) -> None:
        if self.arrivals.kind != "replayed":
            raise ValueError("arrivals: a trace of the format effllm is sent as it is: choose replayed")
        if trace.length_factor != 1 or self.shared_prefix:
            key = "shared_prefix" if self.shared_prefix else "trace.length_factor"
            raise ValueError(f"{key}: a trace of the format effllm has its prompts: drop {key}")

    @property
    def has_rate(self) -> bool:
        """Whether requests arrive at a rate that the stage sets."""
        return self.arrivals.kind not in ("closed_loop", "replayed")

    @property
    def longest(self) -> int:
        """Most tokens of a request, prompt and output together."""
        if self.trace:
            return self.trace.most_prompt_tokens + self.trace.most_output_tokens
        # A load without a trace states both.
        assert self.prompt_tokens and self.output_tokens
        return self.prompt_tokens.longest + self.output_tokens.longest


def _check_range(least: int, most: int) -> None:
    if least > most:
        raise ValueError(f"least {least} is above most {most}: exchange them")
