"""The saturated rate, and the rules that tell figures of the engine from those of whoever asked it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from effllm.errors import EngineError
from effllm.results.serving import CompletedRequest, GreedyCheck, SaturationStep, ServedLoad
from effllm.serving.dispatch import Completion, play
from effllm.serving.findings import (
    check_client,
    check_dispatch_lag,
    check_errors,
    check_greedy,
    check_pieces,
    check_rate,
    check_saturated,
)
from effllm.serving.latency import load_figures
from effllm.serving.measure import Kept
from effllm.serving.protocol import saturation_step
from effllm.serving.roofline import Decoding
from effllm.serving.trace import Trace, TracedRequest
from tests.unit.serving.scripted import ScriptedClock, ScriptedEngine


def _completion(lag_s: float = 0.0, first_s: float = 0.1, whole_s: float = 1.0, error: str | None = None) -> Completion:
    times = (10 + first_s, 10 + whole_s)
    return Completion(0, 10.0, 10.0 + lag_s, 5, 2, times, (1, 1), error=error)


def _load(concurrency: int) -> ServedLoad:
    construct: Any = ServedLoad.model_construct
    return construct(concurrency=concurrency)


@pytest.mark.parametrize(("places", "asked", "rate"), [(4, 4, 0.5), (4, 8, 0.5), (8, 8, 1.0)])
def test_the_saturated_rate_is_that_of_a_full_engine(places: int, asked: int, rate: float) -> None:
    """An answer takes eight seconds, so that so many places give an eighth of their number a second."""
    clock = ScriptedClock()
    requests = tuple(TracedRequest(i, None, (1,), 8) for i in range(5 * asked))
    played = play(ScriptedEngine(clock, places=places), Trace(requests, concurrency=asked), clock)
    completions = [
        CompletedRequest(
            scheduled_s=c.scheduled_s,
            dispatched_s=c.dispatched_s,
            prompt_tokens=1,
            token_times_s=list(c.token_times_s),
            token_counts=None,
            error=None,
        )
        for c in played.completions
    ]
    kept = Kept.model_construct(load=_load(asked), completions=completions)
    step = saturation_step(kept)
    assert step.concurrency == asked
    assert step.requests_per_s == pytest.approx(rate)
    assert step.output_tokens_per_s == pytest.approx(8 * rate)


def test_the_roofline_counts_weights_once_a_step_and_the_cache_of_every_request() -> None:
    """Steps of 10 ms, 400 tokens/s, so that four requests get a token in each; 3.35 TB/s is the H100's peak."""
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=300, tie_word_embeddings=False,
    )  # fmt: skip
    times = [0.5 + 0.01 * i for i in range(20)]
    request = CompletedRequest(
        scheduled_s=0.0, dispatched_s=0.0, prompt_tokens=30, token_times_s=times, token_counts=None, error=None
    )
    completions = [Completion(0, 0.0, 0.0, 30, 20, tuple(times), (1,) * 20)] * 20
    construct: Any = ServedLoad.model_construct
    load = construct(figures=load_figures(completions))
    kept = Kept.model_construct(load=load, completions=[request])
    roofline = Decoding(config, 10**6, torch.bfloat16).roofline(kept, 400.0, "NVIDIA H100 80GB HBM3")
    # Keys and values of 30 + 10 tokens, two layers and two heads of eight numbers; the input table is not read.
    cache = 2 * 2 * 40 * 2 * 8 * 2
    assert roofline.decode_bytes_per_step == pytest.approx(10**6 - 300 * 32 * 2 + 4 * cache)
    assert roofline.decode_mbu == pytest.approx(roofline.decode_bytes_per_step / 0.01 / 3.35e12)
    unknown = Decoding(config, 10**6, torch.bfloat16).roofline(kept, 400.0, "a CPU")
    assert unknown.decode_mbu is None and "'a CPU'" in unknown.reasons["decode_mbu"]


def _rules(findings: list[Any]) -> list[tuple[str, str]]:
    return [(finding.rule, finding.severity) for finding in findings]


def test_lag_and_the_clients_own_work_are_told() -> None:
    assert check_dispatch_lag([_completion(lag_s=0.009)] * 100) == []
    assert _rules(check_dispatch_lag([_completion(lag_s=0.02)] * 100)) == [("dispatch_lag", "warning")]
    assert _rules(check_dispatch_lag([_completion(lag_s=0.2)] * 100)) == [("dispatch_lag", "error")]
    assert check_dispatch_lag([_completion(lag_s=5.0)] + [_completion()] * 199) == [], "one of two hundred"
    assert check_client(0.3) == []
    assert _rules(check_client(0.6)) == [("client_cpu", "warning")]
    assert _rules(check_client(0.95)) == [("client_cpu", "error")]


def test_a_request_without_an_answer_is_an_error() -> None:
    assert check_errors([_completion()]) == []
    (finding,) = check_errors(
        [_completion(), _completion(error="500"), _completion(error="500"), _completion(error="x")]
    )
    assert finding.severity == "error"
    assert finding.message == "3 of 4 requests failed: 500, and 1 other error"


def test_a_rate_that_requests_did_not_come_at_and_tokens_that_come_in_pieces_are_told() -> None:
    assert check_rate(4.0, 3.0) == check_rate(None, 3.0) == check_rate(4.0, None) == []
    (finding,) = check_rate(4.0, 9.0)
    assert finding.severity == "warning" and "came at 9 a second where 4 were asked for" in finding.message
    assert check_pieces([_completion()]) == check_pieces([_completion(error="x")]) == []
    (finding,) = check_pieces([replace(_completion(), token_counts=(3, 3), output_tokens=6)])
    assert finding.severity == "warning" and "tokens came 3 at a time" in finding.message


@pytest.mark.parametrize(("answered", "said"), [(0, "0 of 6 .*: busy"), (1, "1 of 6 .*: busy")])
def test_a_closed_loop_that_is_refused_gives_no_rate(answered: int, said: str) -> None:
    """Refused at once, so that all are sent before the first is answered."""
    requests = [
        CompletedRequest(
            scheduled_s=0.0, dispatched_s=0.01 * place, prompt_tokens=1, token_counts=None,
            token_times_s=[1.0, 2.0] * (place < answered), error=None if place < answered else "busy",
        )
        for place in range(6)
    ]  # fmt: skip
    with pytest.raises(EngineError, match=f"{said}; lower saturation.maximum_concurrency"):
        saturation_step(Kept.model_construct(load=_load(2), completions=requests))


def test_outputs_that_differ_are_an_error_in_float32_and_told_in_16_bits() -> None:
    def check(identical: int, first: int = 8) -> GreedyCheck:
        return GreedyCheck(against="x", requests=8, identical=identical, first_identical=first)

    assert check_greedy(check(8), "float32") == []
    assert _rules(check_greedy(check(7), "float32")) == [("greedy", "error")]
    (finding,) = check_greedy(check(7), "bfloat16")
    assert finding.severity == "warning" and "1 of 8 requests differ" in finding.message
    assert _rules(check_greedy(check(0, first=1), "bfloat16")) == [("greedy", "error")]


def test_a_rate_that_still_grows_is_not_saturated() -> None:
    def steps(*rates: float) -> list[SaturationStep]:
        return [SaturationStep(concurrency=2**i, requests_per_s=r, output_tokens_per_s=r) for i, r in enumerate(rates)]

    assert check_saturated(steps(1.0, 1.9, 2.0), 0.1) == []
    assert _rules(check_saturated(steps(1.0, 1.9), 0.1)) == [("saturation", "warning")]
    assert _rules(check_saturated(steps(1.0), 0.1)) == [("saturation", "warning")]
