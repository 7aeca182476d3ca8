"""Loads become traces: times, lengths and tokens as the study states them, the same at every rate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from effllm.errors import UserError
from effllm.serving.arrivals import arrival_times
from effllm.serving.lengths import draw_lengths
from effllm.serving.load import FixedLength, GammaArrivals, Load, LognormalLength, PoissonArrivals, UniformLength
from effllm.serving.synthesis import make_trace

_SHORT = {"kind": "fixed", "tokens": 8}
_OWN = {
    "arrivals": {"kind": "replayed"},
    "prompt_tokens": None,
    "output_tokens": None,
    "trace": {"format": "effllm", "path": "t.jsonl", "most_prompt_tokens": 9, "most_output_tokens": 9},
}


def _load(**changes: Any) -> Load:
    return Load.model_validate(
        {"arrivals": {"kind": "poisson"}, "prompt_tokens": _SHORT, "output_tokens": _SHORT, **changes}
    )


def _times(load: Load, requests: int, rate: float, seed: int = 0) -> list[float]:
    times = [request.scheduled_s for request in make_trace(load, requests, 50, seed, rate).requests]
    return [time for time in times if time is not None]


def test_gaps_have_their_distribution_at_the_rate() -> None:
    rate = 5.0
    for arrivals, reference in (
        (PoissonArrivals(kind="poisson"), stats.expon(scale=1 / rate)),
        (GammaArrivals(kind="gamma", burstiness=0.25), stats.gamma(0.25, scale=4 / rate)),
        (GammaArrivals(kind="gamma", burstiness=9), stats.gamma(9, scale=1 / 9 / rate)),
    ):
        gaps = np.diff(arrival_times(arrivals, 4001, rate, np.random.default_rng(3)))
        assert stats.kstest(gaps, reference.cdf).pvalue > 0.01
    assert _times(_load(arrivals={"kind": "constant"}), 5, 4.0) == [0, 0.25, 0.5, 0.75, 1]


def test_lengths_have_their_distribution_within_their_range() -> None:
    uniform = draw_lengths(UniformLength(kind="uniform", least=3, most=6), 4000, np.random.default_rng(1))
    assert stats.chisquare(np.bincount(uniform)[3:]).pvalue > 0.01
    length = LognormalLength(kind="lognormal", median=100, sigma=0.5, least=50, most=400)
    drawn = draw_lengths(length, 4000, np.random.default_rng(1))
    assert min(drawn) >= 50 and max(drawn) <= 400
    whole = stats.lognorm(0.5, scale=100)
    low, high = whole.cdf([50, 400])
    # Rounding moves a length by half a token, so that steps of one are shaken apart again.
    shaken = np.array(drawn) + np.random.default_rng(2).uniform(-0.5, 0.5, len(drawn))
    assert stats.kstest(shaken, lambda x: np.clip((whole.cdf(x) - low) / (high - low), 0, 1)).pvalue > 0.01
    assert draw_lengths(FixedLength(kind="fixed", tokens=9), 3, np.random.default_rng(1)) == [9, 9, 9]


def test_a_rate_changes_the_times_alone() -> None:
    load = _load(
        arrivals={"kind": "gamma", "burstiness": 0.5}, prompt_tokens={"kind": "uniform", "least": 2, "most": 9}
    )
    slow, fast = (make_trace(load, 40, 50, 7, rate) for rate in (1.0, 4.0))
    closed = make_trace(load, 40, 50, 7, concurrency=3)
    for one, other, third in zip(slow.requests, fast.requests, closed.requests, strict=True):
        assert (one.prompt, one.output_tokens) == (other.prompt, other.output_tokens) == (third.prompt, 8)
        assert one.scheduled_s == pytest.approx(4 * (other.scheduled_s or 0)) and third.scheduled_s is None
    assert closed.concurrency == 3
    assert make_trace(load, 40, 50, 7, 1.0) == slow != make_trace(load, 40, 50, 8, 1.0)
    assert max(word for request in slow.requests for word in request.prompt) < 50


def test_a_share_of_the_requests_begins_alike() -> None:
    prompts = {"kind": "fixed", "tokens": 20}
    load = _load(prompt_tokens=prompts, shared_prefix={"share": 0.6, "tokens": 12, "prefixes": 2})
    trace, plain = (make_trace(one, 2000, 1000, 1, 1.0) for one in (load, _load(prompt_tokens=prompts)))
    beginnings = [request.prompt[:12] for request in trace.requests]
    common = [start for start in set(beginnings) if beginnings.count(start) > 10]
    assert len(common) == 2
    shared = sum(start in common for start in beginnings)
    assert stats.binomtest(shared, 2000, 0.6).pvalue > 0.01
    # What follows is each request's own, and the others are as they were.
    assert len({request.prompt[12:] for request in trace.requests}) > 1990
    for request, other in zip(trace.requests, plain.requests, strict=True):
        assert request.prompt[12:] == other.prompt[12:]
        assert (request.prompt == other.prompt) == (request.prompt[:12] not in common)


def test_a_trace_gives_lengths_times_and_common_blocks(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 500, "input_length": 1100, "output_length": 20, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 1500, "input_length": 1200, "output_length": 10, "hash_ids": [0, 1, 9]}\n'
        '{"timestamp": 2500, "input_length": 100, "output_length": 30}\n'
    )
    limits = {"most_prompt_tokens": 200, "most_output_tokens": 9, "length_factor": 1 / 8}
    load = Load.model_validate(
        {"arrivals": {"kind": "recorded"}, "trace": {"format": "mooncake", "path": str(path), **limits}}
    )
    first, second, third = make_trace(load, 3, 1000, 5, 10.0).requests
    assert [request.scheduled_s for request in (first, second, third)] == pytest.approx([0, 0.1, 0.2])
    assert [(len(request.prompt), request.output_tokens) for request in (first, second, third)] == [
        (138, 2),
        (150, 1),
        (12, 4),
    ]
    # Two blocks of 512 tokens, an eighth of that here.
    assert first.prompt[:128] == second.prompt[:128] and first.prompt[:129] != second.prompt[:129]
    assert load.longest == 209
    with pytest.raises(UserError, match=r"has 3 requests .* and 4 are wanted: raise the limits"):
        make_trace(load, 4, 1000, 5, 10.0)


def _replayed(path: Path, format: str = "effllm", **changes: Any) -> Load:
    trace = {"format": format, "path": str(path), "most_prompt_tokens": 9, "most_output_tokens": 9}
    return Load.model_validate({"arrivals": {"kind": "replayed"}, "trace": trace, **changes})


@pytest.mark.parametrize("sent", [{"rate_per_s": 3.0}, {"concurrency": 2}], ids=["at a rate", "closed loop"])
def test_a_trace_that_was_written_is_replayed_as_it_was(tmp_path: Path, sent: dict[str, Any]) -> None:
    """Whatever the seed, and to the byte; a warm-up has the same lengths, and prompts that no load has."""
    path = tmp_path / "0.9.jsonl"
    lengths = {"prompt_tokens": {"kind": "uniform", "least": 2, "most": 9}}
    written = make_trace(_load(**lengths), 12, 50, 7, **sent)
    written.write(path)
    again = make_trace(_replayed(path), 12, 50, 8)
    assert again == written
    again.write(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    assert make_trace(_replayed(path), 5, 50, 8).requests == written.requests[:5]
    warm_up = make_trace(_replayed(path), 5, 50, 8, concurrency=5)
    for request, other in zip(warm_up.requests, written.requests, strict=False):
        assert len(request.prompt) == len(other.prompt) and request.prompt != other.prompt
    assert written.rate_per_s is None or written.rate_per_s == pytest.approx(
        11 / (written.requests[-1].scheduled_s or 0)
    )


@pytest.mark.parametrize(
    ("requests", "vocabulary", "message"),
    [
        (13, 50, "has 12 requests, and warmup_requests and requests are 13 together: state those"),
        (12, 20, r"has the token \d\d, and the model 20 words; replay it to models of one vocabulary"),
    ],
)
def test_a_written_trace_that_cannot_be_replayed_is_refused(
    tmp_path: Path, requests: int, vocabulary: int, message: str
) -> None:
    path = tmp_path / "t.jsonl"
    make_trace(_load(), 12, 50, 7, 1.0).write(path)
    with pytest.raises(UserError, match=message):
        make_trace(_replayed(path), requests, vocabulary, 0)
    trace = {"format": "effllm", "path": str(path), "most_prompt_tokens": 7, "most_output_tokens": 9}
    with pytest.raises(UserError, match=r"request 0 has 8 tokens, above trace\.most_prompt_tokens 7; raise it"):
        make_trace(Load.model_validate({"arrivals": {"kind": "replayed"}, "trace": trace}), 12, 50, 0)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match="is not a whole trace of requests"):
        make_trace(_replayed(path), 12, 50, 0)


def test_public_traces_are_replayed_at_their_own_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(f'{{"timestamp": {at}, "input_length": 9, "output_length": 2}}\n' for at in (500, 700, 1700))
    )
    times = [request.scheduled_s for request in make_trace(_replayed(path, "mooncake"), 3, 50, 0).requests]
    assert times == pytest.approx([0, 0.2, 1.2])


def test_recorded_requests_of_one_moment_have_no_rate(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 5, "input_length": 9, "output_length": 2}\n' * 3)
    load = Load.model_validate(
        {
            "arrivals": {"kind": "recorded"},
            "trace": {"format": "mooncake", "path": str(path), "most_prompt_tokens": 9, "most_output_tokens": 9},
        }
    )
    with pytest.raises(UserError, match="come at one moment, which has no rate; take more requests"):
        make_trace(load, 3, 50, 0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": None}, "prompt_tokens: a load without a trace states its lengths: add them"),
        ({"arrivals": {"kind": "recorded"}}, "recorded times come from a trace file: add trace"),
        ({"prompt_tokens": {"kind": "uniform", "least": 9, "most": 3}}, "least 9 is above most 3: exchange them"),
        (
            {"output_tokens": {"kind": "lognormal", "median": 9, "sigma": 1, "least": 10, "most": 30}},
            "median 9 is not between least 10 and most 30",
        ),
        (
            {"output_tokens": {"kind": "lognormal", "median": 90000, "sigma": 9, "least": 90000, "most": 90000}},
            r"least 90000 and most 90000 hold 4\.9e-07 of the distribution, .* choose uniform or fixed",
        ),
        ({"shared_prefix": {"share": 0.5, "tokens": 8}}, "leaves nothing of the shortest prompt, 8 tokens"),
        ({"arrivals": {"kind": "replayed"}}, "replayed times come from a trace file: add trace"),
        (_OWN | {"arrivals": {"kind": "recorded"}}, "format effllm is sent as it is: choose replayed"),
        (
            _OWN | {"shared_prefix": {"share": 0.5, "tokens": 8}},
            "shared_prefix: a trace of the format effllm has its prompts: drop shared_prefix",
        ),
        (
            {"trace": {"format": "azure", "path": "a.csv", "most_prompt_tokens": 9, "most_output_tokens": 9}},
            "prompt_tokens and output_tokens: the trace gives the lengths: drop either",
        ),
    ],
)
def test_loads_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _load(**changes)
