"""Plays a trace to an engine: sends requests at their times, and notes when each of their tokens came."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from effllm.errors import EngineError
from effllm.serving.engine import Engine, EngineUsage, TokenEvent
from effllm.serving.trace import Trace, TracedRequest

# How often an engine is asked how full it is.
_USAGE_PERIOD_S = 0.25


@dataclass(frozen=True)
class Completion:
    """What became of a request; times in s from the trace's start.

    `token_times_s` has the arrivals, and `token_counts` how many tokens each brought. `tokens` are their ids, None
    from an engine that does not give them. With an `error` the request ended early. In a closed loop `scheduled_s` is
    when it was sent.
    """

    index: int
    scheduled_s: float
    dispatched_s: float
    prompt_tokens: int
    output_tokens: int
    token_times_s: tuple[float, ...]
    token_counts: tuple[int, ...]
    tokens: tuple[int, ...] | None = None
    error: str | None = None

    @property
    def dispatch_lag_s(self) -> float:
        """How late the request was sent."""
        return self.dispatched_s - self.scheduled_s


@dataclass(frozen=True)
class UsageSample:
    """How full the engine was, in s from the trace's start."""

    time_s: float
    usage: EngineUsage


@dataclass(frozen=True)
class Played:
    """A trace that was played: its completions in the order of its requests.

    `start_s` is the trace's start by the clock that it was played by. `duration_s` reaches to the last token, and
    `client_cpu_s` is processor time that sending and receiving took.
    """

    completions: list[Completion]
    usage: list[UsageSample]
    start_s: float
    duration_s: float
    client_cpu_s: float


class Clock(Protocol):
    """The time that a trace is played by."""

    def now(self) -> float:
        """Seconds, on the clock of the engine's events."""


class WallClock:
    """The clock of engines: `time.perf_counter`."""

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter()


@dataclass
class _UnderWay:
    """A request that was sent, and what has come of it."""

    request: TracedRequest
    dispatched_s: float
    times_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def take(self, event: TokenEvent, time_s: float) -> None:
        if event.token_count:
            self.times_s.append(time_s)
            self.counts.append(event.token_count)
            self.tokens += event.tokens

    def completion(self, error: str | None) -> Completion:
        request, produced = self.request, sum(self.counts)
        if error is None and produced != request.output_tokens:
            error = f"{produced} tokens came where {request.output_tokens} were asked for"
        return Completion(
            index=request.index,
            scheduled_s=self.dispatched_s if request.scheduled_s is None else request.scheduled_s,
            dispatched_s=self.dispatched_s,
            prompt_tokens=len(request.prompt),
            output_tokens=produced,
            token_times_s=tuple(self.times_s),
            token_counts=tuple(self.counts),
            tokens=tuple(self.tokens) if len(self.tokens) == produced else None,
            error=error,
        )


def play(
    engine: Engine,
    trace: Trace,
    clock: Clock | None = None,
    patience_s: float = 60.0,
    sent: Callable[[TracedRequest], None] | None = None,
) -> Played:
    """Play a trace to an engine that has started, until every request has ended.

    `sent` is called after each request that was sent, in the thread that sends. `EngineError` where the engine is no
    more, or gives no sign of life for `patience_s` while requests are under way.
    """
    clock = clock or WallClock()
    cpu_clock = time.thread_time if engine.description.in_process else time.process_time
    waiting = list(reversed(trace.requests))
    under_way: dict[int, _UnderWay] = {}
    completions: dict[int, Completion] = {}
    usage: list[UsageSample] = []
    cpu, start = cpu_clock(), clock.now()
    sign_of_life, ended = start, 0.0
    while waiting or under_way:
        now = clock.now() - start
        while waiting and _is_due(trace, waiting[-1], now, len(under_way)):
            request = waiting.pop()
            now = clock.now() - start
            if not under_way:
                sign_of_life = start + now
            engine.submit(request)
            under_way[request.index] = _UnderWay(request, now)
            if sent:
                sent(request)
        if not usage or now >= usage[-1].time_s + _USAGE_PERIOD_S:
            usage.append(UsageSample(now, engine.usage()))
        until = usage[-1].time_s + _USAGE_PERIOD_S
        if waiting and (scheduled_s := waiting[-1].scheduled_s) is not None:
            until = min(until, scheduled_s)
        for event in engine.events(max(until - (clock.now() - start), 0.0)):
            sign_of_life = clock.now()
            if event.index not in under_way:
                raise EngineError(f"the engine answers a request of number {event.index}, which is not under way")
            ended = max(ended, event.time_s - start)
            under_way[event.index].take(event, event.time_s - start)
            if event.finished:
                completions[event.index] = under_way.pop(event.index).completion(event.error)
        if under_way and clock.now() - sign_of_life > patience_s:
            raise EngineError(
                f"the engine has given no token for patience_s {patience_s:g} s with {len(under_way)} requests under "
                "way; raise it where a token may take so long"
            )
    usage.append(UsageSample(clock.now() - start, engine.usage()))
    ordered = [completions[request.index] for request in trace.requests]
    return Played(ordered, usage, start, ended, cpu_clock() - cpu)


def _is_due(trace: Trace, request: TracedRequest, now_s: float, under_way: int) -> bool:
    if request.scheduled_s is not None:
        return request.scheduled_s <= now_s
    return trace.concurrency is not None and under_way < trace.concurrency
