"""The trace of a load: requests of random tokens at their times, the same for every model of one vocabulary."""

import math
from collections.abc import Sequence

import numpy as np

from effllm.serving.arrivals import arrival_times
from effllm.serving.lengths import draw_lengths
from effllm.serving.load import Load, SharedPrefix, TraceFile
from effllm.serving.trace import Trace, TracedRequest
from effllm.serving.trace_files import BLOCK_TOKENS, Recorded, read_own_trace, read_trace

# What is drawn from streams of its own, so that a change of one leaves the others as they are.
_TIMES, _PROMPTS, _OUTPUTS, _TOKENS, _SHARED, _BLOCKS = range(6)


def make_trace(
    load: Load,
    requests: int,
    vocabulary: int,
    seed: int,
    rate_per_s: float | None = None,
    concurrency: int | None = None,
) -> Trace:
    """So many requests of a load, either at a rate or, with a `concurrency`, in a closed loop, or as they are replayed.

    One seed gives the same prompts and lengths at every rate, and the same gaps but for their scale. `UserError` for a
    trace file that is damaged or too short.
    """
    recorded = None
    if load.trace and load.trace.format == "effllm":
        own = read_own_trace(load.trace, requests, vocabulary)
        if concurrency is None:
            return own
        recorded = [Recorded(0.0, len(request.prompt), request.output_tokens) for request in own.requests]
    elif load.trace:
        recorded = read_trace(load.trace, requests)
    prompts, outputs = _lengths(load, requests, seed, recorded)
    tokens = _prompts(load, prompts, vocabulary, seed, recorded)
    if concurrency is None and load.arrivals.kind == "closed_loop":
        concurrency = load.arrivals.concurrency
    times: Sequence[float | None] = [None] * requests
    if concurrency is None and recorded and load.arrivals.kind == "replayed":
        times = [request.time_s for request in recorded]
    elif concurrency is None:
        if rate_per_s is None:
            raise ValueError("a load that is no closed loop has a rate")
        recorded_s = [request.time_s for request in recorded or ()]
        times = arrival_times(load.arrivals, requests, rate_per_s, _generator(seed, _TIMES), recorded_s)
    return Trace(
        tuple(
            TracedRequest(index, time, prompt, output)
            for index, (time, prompt, output) in enumerate(zip(times, tokens, outputs, strict=True))
        ),
        concurrency,
    )


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def _lengths(load: Load, requests: int, seed: int, recorded: list[Recorded] | None) -> tuple[list[int], list[int]]:
    if recorded is not None:
        return [request.prompt_tokens for request in recorded], [request.output_tokens for request in recorded]
    # A load without a trace states both.
    assert load.prompt_tokens and load.output_tokens
    return (
        draw_lengths(load.prompt_tokens, requests, _generator(seed, _PROMPTS)),
        draw_lengths(load.output_tokens, requests, _generator(seed, _OUTPUTS)),
    )


def _prompts(
    load: Load, lengths: Sequence[int], vocabulary: int, seed: int, recorded: list[Recorded] | None
) -> list[tuple[int, ...]]:
    generator = _generator(seed, _TOKENS)
    prompts = [_draw(generator, vocabulary, length) for length in lengths]
    if load.trace and recorded:
        prompts = [
            _of_blocks(request, load.trace, vocabulary, seed) if request.blocks else prompt
            for request, prompt in zip(recorded, prompts, strict=True)
        ]
    return _with_prefixes(load.shared_prefix, prompts, vocabulary, seed) if load.shared_prefix else prompts


def _draw(generator: np.random.Generator, vocabulary: int, length: int) -> tuple[int, ...]:
    return tuple(int(word) for word in generator.integers(0, vocabulary, length))


def _of_blocks(request: Recorded, trace: TraceFile, vocabulary: int, seed: int) -> tuple[int, ...]:
    """A prompt of the tokens that belong to its blocks."""
    size = max(1, math.ceil(BLOCK_TOKENS * trace.length_factor))
    blocks = [_draw(_generator(seed, _BLOCKS, id), vocabulary, size) for id in request.blocks]
    return tuple(word for block in blocks for word in block)[: request.prompt_tokens]


def _with_prefixes(
    shared: SharedPrefix, prompts: Sequence[tuple[int, ...]], vocabulary: int, seed: int
) -> list[tuple[int, ...]]:
    """Prompts of which a share begins with one of the prefixes, as far as it leaves them a token of their own."""
    generator = _generator(seed, _SHARED)
    prefixes = [_draw(generator, vocabulary, shared.tokens) for _ in range(shared.prefixes)]
    chosen = generator.integers(0, shared.prefixes, len(prompts))
    has_prefix = generator.random(len(prompts)) < shared.share
    return [
        (*prefixes[which][: len(prompt) - 1], *prompt[min(shared.tokens, len(prompt) - 1) :]) if has else prompt
        for prompt, which, has in zip(prompts, chosen, has_prefix, strict=True)
    ]
