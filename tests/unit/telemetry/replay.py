"""Replays a scripted session on a fake clock through the real sampling loop, window manager, validation and summary."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fake_nvml import FakeClock

from effllm.results.telemetry import TelemetrySummary
from effllm.telemetry.readings import Readings
from effllm.telemetry.sampler import SamplingLoop
from effllm.telemetry.sources.base import Source
from effllm.telemetry.spool import TICK, SpoolWriter, parquet_loader, spools_to_parquet
from effllm.telemetry.summary import Summary
from effllm.telemetry.validation import validate_windows
from effllm.telemetry.windows import WindowManager


class Replay:
    """A session in which `advance_to` lets time pass; the sampler is `delay_s(t)` late for a sample due at t."""

    def __init__(
        self,
        directory: Path,
        clock: FakeClock,
        sources: Sequence[Source],
        period_s: float = 0.1,
        delay_s: Callable[[float], float] = lambda t: 0.0,
        device: str = "cuda",
        devices: int = 1,
    ):
        self.clock, self.sources, self.device, self.devices = clock, list(sources), device, devices
        self._directory, self._period_s, self._delay_s = directory, period_s, delay_s
        self._channels = [(s.name, q) for s in self.sources for q in (*s.quantities, TICK)]
        index = {channel: i for i, channel in enumerate(self._channels)}
        self._spools = {origin: SpoolWriter(directory / f"{origin}.spool") for origin in ("sampler", "edge")}
        self.events: list[dict] = []
        self._loop = SamplingLoop(
            self.sources,
            index,
            period_s,
            self._spools["sampler"],
            lambda source, time_ns, reason: self.events.append(
                {"event": "lost", "source": source, "time_ns": time_ns, "reason": reason}
            ),
            clock.monotonic_ns,
            clock.wall_ns,
        )
        self.book = WindowManager(
            self.sources,
            lambda: None,
            lambda: None,
            lambda source, quantity, *reading: self._spools["edge"].add(index[source, quantity], *reading),
            clock.monotonic_ns,
            clock.wall_ns,
        )
        self._start_ns = clock.now_ns
        self._due_ns = self._loop.step()

    @property
    def readings_taken(self) -> int:
        return self._loop.readings

    def advance_to(self, t: float) -> None:
        """Let time pass until `t` seconds after the start, sampling whenever the loop wants to."""
        until_ns = self._start_ns + round(t * 1e9)
        while self._due_ns is not None:
            due_s = (self._due_ns - self._start_ns) / 1e9
            wake_ns = max(self._due_ns + round(self._delay_s(due_s) * 1e9), self.clock.now_ns)
            if wake_ns > until_ns:
                break
            self.clock.now_ns = wake_ns
            self._due_ns = self._loop.step()
        self.clock.now_ns = until_ns

    def window(self, name: str, start: float, end: float) -> None:
        """One window from `start` to `end` seconds."""
        self.advance_to(start)
        self.book.begin(name)
        self.advance_to(end)
        self.book.end(name)

    def finish(self) -> Readings:
        """Collect and validate; returns the readings."""
        self._loop.finish()
        for spool in self._spools.values():
            spool.close()
        path = self._directory / "samples.parquet"
        spools = [(origin, self._directory / f"{origin}.spool") for origin in self._spools]
        self.samples = spools_to_parquet(spools, self._channels, ["" for _ in self._channels], path)
        self.readings = Readings(parquet_loader(path))
        validate_windows(self.book.closed, self.sources, self.readings, self.events, self._period_s)
        return self.readings

    def summary(self, name: str) -> TelemetrySummary:
        windows = [window for window in self.book.closed if window.name == name]
        sources = {source.name: source for source in self.sources}
        return Summary(windows, sources, self.readings, self.device, self.devices).figures()
