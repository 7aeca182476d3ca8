"""What the power sensors of a GPU tell: how often, over what time, of what, and whether they agree with its counter.

    python benchmarks/power.py [--window-s 30] [--output power.json]

steady      products of large matrices without a pause, under a `Telemetry` session: energy by the counter beside the
            integral of sampled power
square      the same in bursts of seconds, which a sensor that averages or lags must follow; a process of its own polls
            NVML as fast as it answers. When a value changes gives the sensor's update period. How long it takes from
            10 % to 90 % of a step, over 0.8, is the width of the window that it averages over, if that is a plain mean
idle        a rest, for the power at which the device waits
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effllm.results.telemetry import TelemetrySummary
from effllm.telemetry import Telemetry, device_info
from effllm.telemetry.devices import nvml_uuid
from effllm.telemetry.sources.nvml import load_nvml

PERIOD_S = 0.1
# The counter takes milliseconds to answer, which would starve the sensors of questions.
COUNTER_EVERY_S = 0.02
TARGET_DISAGREEMENT = 0.05
FIELDS = ("power_instant_w", "power_average_w")


def poll(uuid: str, path: str, started: Event, stop: Event) -> None:
    """Ask NVML again and again until `stop`; write the readings that differ from the last, and how many there were."""
    nvml = load_nvml()
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    ids = [nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_FI_DEV_POWER_AVERAGE]
    questions = [(field, nvml.NVML_POWER_SCOPE_GPU) for field in ids]
    changes: dict[str, list[tuple[float, float]]] = {name: [] for name in (*FIELDS, "energy_j")}
    asked = dict.fromkeys(changes, 0)
    counter_due = 0.0
    started.set()
    while not stop.is_set():
        answers = nvml.nvmlDeviceGetFieldValues(handle, questions)
        now = time.monotonic()
        values = {
            name: answer.value.uiVal / 1e3
            for name, answer in zip(FIELDS, answers, strict=True)
            if answer.nvmlReturn == nvml.NVML_SUCCESS
        }
        if now >= counter_due:
            values["energy_j"] = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            counter_due = time.monotonic() + COUNTER_EVERY_S
        for name, value in values.items():
            asked[name] += 1
            if not changes[name] or changes[name][-1][1] != value:
                changes[name].append((now, value))
    Path(path).write_text(json.dumps({"changes": changes, "asked": asked}))


def update_period(times: Sequence[float]) -> dict[str, Any]:
    """Time between changes of a value in s: median, and the range that holds 90 % of them."""
    gaps = np.diff(np.asarray(times, dtype=float))
    if not len(gaps):
        return {"changes": 0, "median_s": None, "p5_s": None, "p95_s": None}
    low, median, high = np.percentile(gaps, (5, 50, 95))
    return {"changes": len(gaps), "median_s": float(median), "p5_s": float(low), "p95_s": float(high)}


def step_response(
    times: Sequence[float], values: Sequence[float], bursts: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """How a sensor follows the beginnings of bursts (on, off), medians over them, in s.

    `delay_s` from a beginning to half the step; `rise_s` from 10 % to 90 %; `averaging_window_s` is rise / 0.8, which a
    plain mean over a window of that width has. None where no step is seen.
    """
    times, values = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    delays, rises, steps = [], [], []
    for (_, previous_off), (on, off) in itertools.pairwise(bursts):
        low = _last_mean(times, values, previous_off, on)
        high = _last_mean(times, values, on, off)
        if low is None or high is None or high - low < 0.2 * abs(high):
            continue
        crossings = [_crossing(times, values, on, off, low + share * (high - low)) for share in (0.1, 0.5, 0.9)]
        if None in crossings:
            continue
        delays.append(crossings[1] - on)
        rises.append(crossings[2] - crossings[0])
        steps.append(high - low)
    if not rises:
        return {"bursts": 0, "step_w": None, "delay_s": None, "rise_s": None, "averaging_window_s": None}
    rise = statistics.median(rises)
    return {
        "bursts": len(rises),
        "step_w": statistics.median(steps),
        "delay_s": statistics.median(delays),
        "rise_s": rise,
        "averaging_window_s": rise / 0.8,
    }


def _last_mean(times: np.ndarray, values: np.ndarray, start: float, end: float) -> float | None:
    """Mean of what was last reported in the last quarter of a stretch; the value stands between its changes."""
    grid = np.linspace(end - (end - start) / 4, end, 50, endpoint=False)
    index = np.searchsorted(times, grid, side="right") - 1
    return float(values[index].mean()) if index.min() >= 0 else None


def _crossing(times: np.ndarray, values: np.ndarray, start: float, end: float, level: float) -> float | None:
    """When the reported value first reaches `level` in a stretch."""
    inside = (times >= start) & (times <= end) & (values >= level)
    return float(times[inside][0]) if inside.any() else None


def run(device: str, window_s: float, half_period_s: float) -> dict[str, Any]:
    """The three windows, and what the poller saw during the bursts."""
    context = multiprocessing.get_context("spawn")
    uuid = nvml_uuid(device)
    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    work = Load(a, b)
    work.until(time.monotonic() + 2)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "polled.json"
        with Telemetry(Path(folder) / "telemetry", device, PERIOD_S) as telemetry:
            with telemetry.window("idle"):
                time.sleep(min(10.0, window_s))
            with telemetry.window("steady"):
                steady_products = work.until(time.monotonic() + window_s)
            started, stop = context.Event(), context.Event()
            poller = context.Process(target=poll, args=(uuid, str(found), started, stop))
            poller.start()
            started.wait(30)
            with telemetry.window("square"):
                bursts = work.bursts(window_s, half_period_s)
            stop.set()
            poller.join(30)
        summaries = {name: telemetry.summary(name) for name in ("idle", "steady", "square")}
        sources = json.loads((Path(folder) / "telemetry" / "windows.json").read_text()).get("sources")
        polled = json.loads(found.read_text())
    sensors = {}
    for name, changes in polled["changes"].items():
        times, values = [time for time, _ in changes], [value for _, value in changes]
        sensors[name] = {"asked": polled["asked"][name], "update": update_period(times)}
        if name in FIELDS:
            sensors[name]["step"] = step_response(times, values, bursts)
    return {
        "agreement": {name: agreement(summary) for name, summary in summaries.items()},
        "bursts": bursts,
        "half_period_s": half_period_s,
        "polled": polled["changes"],
        "sensors": sensors,
        "sources": sources,
        "steady_tflops": 2 * size**3 * steady_products / summaries["steady"]["duration_s"] / 1e12,
        "summaries": summaries,
    }


class Load:
    """Products of two square matrices, queued some at a time."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor):
        self.a, self.b = a, b
        self.out = torch.empty_like(a)

    def until(self, end: float) -> int:
        """Keep the device busy until `end` (monotonic s); the number of products."""
        done = 0
        while time.monotonic() < end:
            for _ in range(8):
                torch.mm(self.a, self.b, out=self.out)
            torch.cuda.synchronize()
            done += 8
        return done

    def bursts(self, duration_s: float, half_period_s: float) -> list[tuple[float, float]]:
        """Bursts and rests of equal length; when each began and ended (monotonic s)."""
        end = time.monotonic() + duration_s
        found = []
        while time.monotonic() < end:
            on = time.monotonic()
            self.until(on + half_period_s)
            off = time.monotonic()
            found.append((on, off))
            time.sleep(half_period_s)
        return found


def agreement(summary: TelemetrySummary) -> dict[str, Any]:
    """Energy by the counter beside the integral of power; `difference` is integral over counter less one."""
    counted, integrated = summary.energy_j, summary.energy_cross_check_j
    is_known = counted is not None and integrated is not None
    return {
        "counter_j": counted,
        "integral_j": integrated,
        "difference": integrated / counted - 1 if is_known else None,
        "reason": None if is_known else summary.reasons.get("energy_cross_check_j") or summary.reasons.get("energy_j"),
        "duration_s": summary.duration_s,
        "scope": summary.energy_scope,
        "source": summary.energy_source,
        "target": TARGET_DISAGREEMENT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--window-s", type=float, default=30.0, help="length of the steady and of the square window")
    parser.add_argument("--half-period-s", type=float, default=3.0, help="length of a burst and of a rest")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device, and so no sensor to look at")
    results = {"device": device_info(arguments.device).model_dump(exclude_unset=True)}
    results |= run(arguments.device, arguments.window_s, arguments.half_period_s)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    for name, found in results["agreement"].items():
        difference = f"{found['difference']:+.2%}" if found["difference"] is not None else found["reason"]
        print(f"{name:8} integral of power over the counter: {difference} ({found['scope']}, {found['source']})")
    for name, found in results["sensors"].items():
        print(f"{name:16} changes every {found['update']['median_s']} s, {found.get('step')}")


if __name__ == "__main__":
    main()
