"""The order of a measurement: warm-up, idle, closed loops until the rate no longer grows, then parts of that rate."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from effllm.errors import EngineError, UserError
from effllm.results.serving import GreedyCheck, SaturationStep, ServingEngine
from effllm.results.telemetry import DeviceInfo, TelemetrySummary
from effllm.runtime.artifact import write_text
from effllm.serving.dispatch import Played, play
from effllm.serving.engine import Engine
from effllm.serving.measure import TELEMETRY, Kept, Load, kept, measure
from effllm.serving.settings import CLOSED, SATURATED, Serving
from effllm.serving.synthesis import make_trace
from effllm.serving.trace import Trace
from effllm.telemetry import Telemetry

_IDLE = "idle"
_BEFORE = "before.json"
_LONGEST_S = 86_400.0
# Requests of a load are no other load's, which an engine may remember.
_WARM_UP_SEED, _SATURATION_SEED, _RATE_SEED = 0, 1, 100


class Before(BaseModel):
    """What is known once the engine has started, and kept for a job that is started again."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    engine: ServingEngine
    greedy: GreedyCheck
    idle: TelemetrySummary


@dataclass(frozen=True)
class Measured:
    """A measurement: what was before, the closed loops, and the loads by id."""

    before: Before
    saturation: list[SaturationStep]
    loads: dict[str, Kept]

    @property
    def saturated_requests_per_s(self) -> float | None:
        """The best rate of the closed loops."""
        return max((step.requests_per_s for step in self.saturation), default=None)

    def tokens_per_s(self, id: str) -> float:
        """Tokens that a load was given: of the closed loop, while all of its requests were under way."""
        if id == SATURATED:
            return max(step.output_tokens_per_s for step in self.saturation)
        figures = self.loads[id].load.figures
        return figures.output_tokens_per_s if figures else 0.0


def run_protocol(
    engine: Engine,
    serving: Serving,
    vocabulary: int,
    scratch: Path,
    info: DeviceInfo,
    devices: Sequence[str],
    label: str,
) -> Measured:
    """Measure an engine that has not started, and stop it. What `scratch` has of an earlier run is not done again."""
    warm_up = _warm_up(serving, vocabulary)
    path = scratch / _BEFORE
    try:
        before = Before.model_validate_json(path.read_bytes()) if path.is_file() else None
        alone = None if before else [engine.alone(request) for request in warm_up.requests[: serving.compared_requests]]
        engine.start()
        _tell(label, "engine started")
        played = play(engine, warm_up, patience_s=serving.patience_s)
        if before is None:
            assert alone is not None
            greedy = _compare(engine, warm_up, played, alone, serving)
            before = Before(engine=_described(engine), greedy=greedy, idle=_rest(serving, scratch, devices))
            write_text(path, json.dumps(before.model_dump(exclude_unset=True), allow_nan=False))

        def measured(load: Load) -> Kept:
            directory = scratch / load.id
            found = kept(directory)
            if found is None:
                found = measure(engine, load, serving, directory, info, devices, before.idle)
                _tell(label, f"load {load.id} measured")
            return found

        if serving.saturation is None:
            trace = make_trace(serving.load, _requests(serving), vocabulary, serving.seed + _RATE_SEED)
            load = Load(serving.only_id, trace, serving.warmup_requests, requests_per_s=trace.rate_per_s)
            return Measured(before, [], {load.id: measured(load)})
        steps, best = _saturate(serving, vocabulary, measured)
        result = Measured(before, steps, {SATURATED: best})
        for load in _rates(serving, vocabulary, max(step.requests_per_s for step in steps)):
            result.loads[load.id] = measured(load)
        return result
    finally:
        engine.stop()


def load_directories(scratch: Path, measured: Measured) -> dict[str, Path]:
    """Where each load, and each closed loop, is kept."""
    loops = [_loop(step.concurrency) for step in measured.saturation]
    return {id: scratch / id for id in [*loops, *(id for id in measured.loads if id != SATURATED)]}


def saturation_step(kept: Kept) -> SaturationStep:
    """The rate of a closed loop, from the tokens that came while all of its requests were under way.

    From when as many were answered as are under way, to when the last was sent. `EngineError` where none was answered
    in that time.
    """
    concurrency = kept.load.concurrency
    assert concurrency is not None
    answered = [request for request in kept.completions if request.error is None]
    done = sorted(request.token_times_s[-1] for request in answered)
    begin = done[min(concurrency, len(done)) - 1] if done else 0.0
    end = max(request.dispatched_s for request in kept.completions)
    tokens = total = 0
    for request in answered:
        total += sum(request.counts)
        tokens += sum(n for at, n in zip(request.token_times_s, request.counts, strict=True) if begin < at <= end)
    if not tokens:
        said = next((request.error for request in kept.completions if request.error), "none was under way long enough")
        raise EngineError(
            f"{len(answered)} of {len(kept.completions)} requests of the closed loop of {concurrency} were answered, "
            f"which give no saturated rate: {said}; lower saturation.maximum_concurrency where fewer at once are"
        )
    per_s = tokens / (end - begin)
    return SaturationStep(
        concurrency=concurrency,
        requests_per_s=per_s * len(done) / total,
        output_tokens_per_s=per_s,
    )


def _saturate(serving: Serving, vocabulary: int, measured: Callable[[Load], Kept]) -> tuple[list[SaturationStep], Kept]:
    """The closed loops, and the one with the best rate."""
    loops: list[tuple[SaturationStep, Kept]] = []
    for place, concurrency in enumerate(_concurrencies(serving)):
        seed = serving.seed + _SATURATION_SEED + place
        assert serving.saturation is not None
        requests = serving.saturation.rounds * concurrency
        trace = make_trace(serving.load, requests, vocabulary, seed, concurrency=concurrency)
        found = measured(Load(_loop(concurrency), trace, concurrency))
        loops.append((saturation_step(found), found))
        if place and loops[-1][0].requests_per_s <= (1 + serving.saturation.gain) * loops[-2][0].requests_per_s:
            break
    return [step for step, _ in loops], max(loops, key=lambda loop: loop[0].requests_per_s)[1]


def _concurrencies(serving: Serving) -> Iterator[int]:
    assert serving.saturation is not None
    concurrency = serving.saturation.concurrency
    while concurrency <= serving.saturation.maximum_concurrency:
        yield concurrency
        concurrency *= 2


def _loop(concurrency: int) -> str:
    return f"{CLOSED}-{concurrency}"


def _rates(serving: Serving, vocabulary: int, saturated_per_s: float) -> Iterator[Load]:
    for place, (id, fraction) in enumerate(serving.rate_ids.items()):
        rate = fraction * saturated_per_s
        seed = serving.seed + _RATE_SEED + place
        trace = make_trace(serving.load, _requests(serving), vocabulary, seed, rate_per_s=rate)
        if (last_s := trace.requests[-1].scheduled_s or 0.0) > _LONGEST_S:
            raise UserError(
                f"fractions: {len(trace.requests)} requests at {id} of the saturated rate, {saturated_per_s:.3g} a "
                f"second, take {last_s / 3600:.3g} hours, more than a day; raise the fraction, or lower requests."
            )
        yield Load(id, trace, serving.warmup_requests, fraction, rate)


def _requests(serving: Serving) -> int:
    return serving.warmup_requests + serving.requests


def _warm_up(serving: Serving, vocabulary: int) -> Trace:
    """As many requests at once as there will be, those that are compared among them."""
    arrivals = serving.load.arrivals
    concurrency = arrivals.concurrency if arrivals.kind == "closed_loop" else 1
    if serving.saturation is not None:
        concurrency = serving.saturation.concurrency
    requests = max(serving.compared_requests, concurrency)
    return make_trace(serving.load, requests, vocabulary, serving.seed + _WARM_UP_SEED, concurrency=requests)


def _compare(
    engine: Engine, trace: Trace, together: Played, alone: Sequence[tuple[int, ...] | None], serving: Serving
) -> GreedyCheck:
    against = "generate, one by one"
    if any(tokens is None for tokens in alone):
        against = "the engine, one by one"
        one_by_one = Trace(trace.requests[: len(alone)], concurrency=1)
        alone = [c.tokens for c in play(engine, one_by_one, patience_s=serving.patience_s).completions]
    pairs = [
        (completion.tokens, tokens)
        for completion, tokens in zip(together.completions, alone, strict=False)
        if completion.tokens and tokens and completion.error is None
    ]
    return GreedyCheck(
        against=against,
        requests=len(pairs),
        identical=sum(served == own for served, own in pairs),
        first_identical=sum(served[0] == own[0] for served, own in pairs),
    )


def _rest(serving: Serving, scratch: Path, devices: Sequence[str]) -> TelemetrySummary:
    telemetry = Telemetry(scratch / _IDLE / TELEMETRY, device=devices, period_s=serving.sample_period_s)
    with telemetry, telemetry.window(_IDLE):
        time.sleep(serving.idle_s)
    return telemetry.summary(_IDLE)


def _tell(label: str, what: str) -> None:
    print(f"progress: {label} {what}", flush=True)


def _described(engine: Engine) -> ServingEngine:
    return ServingEngine(**vars(engine.description))
