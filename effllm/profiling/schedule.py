"""The order of a measurement: rest, warm-up until times settle, then windows in shuffled order with rests between."""

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from effllm.profiling.decoding import Decoding, Generation
from effllm.study.evaluation import InferenceProtocol
from effllm.telemetry import Telemetry

Phase = Literal["generate", "prefill", "vision"]
IDLE = "idle"


@dataclass(frozen=True)
class Warmup:
    """How a workload's phase warmed up: the times of its generations in seconds, and whether the last three agree."""

    seconds: list[float]
    settled: bool


@dataclass(frozen=True)
class Measured:
    """Generations by workload and phase, one inner list per window, and the warm-ups before them."""

    windows: dict[tuple[str, Phase], list[list[Generation]]]
    warmups: dict[tuple[str, Phase], Warmup]

    def __or__(self, other: "Measured") -> "Measured":
        return Measured(self.windows | other.windows, self.warmups | other.warmups)


def window_name(workload: str, phase: Phase) -> str:
    """Name of the telemetry windows of a workload's phase."""
    return f"{workload}/{phase}"


def settle(decoding: Decoding, protocol: InferenceProtocol) -> Warmup:
    """Generate until the last three times span at most `warmup_tolerance` of their median, or to the maximum."""
    seconds: list[float] = []
    while len(seconds) < protocol.warmup_maximum:
        seconds.append(decoding.run().total_s)
        last = seconds[-3:]
        if len(seconds) >= protocol.warmup_minimum:
            spread = (max(last) - min(last)) / statistics.median(last)
            if spread <= protocol.warmup_tolerance:
                return Warmup(seconds, True)
    return Warmup(seconds, False)


def rest(protocol: InferenceProtocol, telemetry: Telemetry) -> None:
    """Measure the device with the model loaded and nothing to do."""
    with telemetry.window(IDLE):
        time.sleep(protocol.idle_s)


def run_schedule(
    decodings: Mapping[tuple[str, Phase], Decoding], protocol: InferenceProtocol, telemetry: Telemetry, label: str
) -> Measured:
    """Measure the given phases in `protocol.repeats` windows each.

    A window repeats its generation until `minimum_window_s` has passed. Windows of all of them are shuffled together,
    so that a drift of the machine falls on all alike.
    """
    warmups = {key: settle(decoding, protocol) for key, decoding in decodings.items()}
    order = [key for key in decodings for _ in range(protocol.repeats)]
    random.Random(protocol.seed).shuffle(order)
    windows: dict[tuple[str, Phase], list[list[Generation]]] = {key: [] for key in decodings}
    for count, key in enumerate(order, start=1):
        time.sleep(protocol.cooldown_s)
        with telemetry.window(window_name(*key)):
            windows[key].append(_window(decodings[key], protocol.minimum_window_s))
        print(f"progress: {label} window {count}/{len(order)} ({window_name(*key)})", flush=True)
    return Measured(windows, warmups)


def _window(decoding: Decoding, minimum_s: float) -> list[Generation]:
    generations = []
    started = time.perf_counter()
    while time.perf_counter() - started < minimum_s:
        generations.append(decoding.run())
    return generations
