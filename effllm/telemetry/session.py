"""`Telemetry`: one measuring session around a workload, from the first window to the written samples.

It ties the rooms together: sources are opened in the workload's process (for the edges of windows) and again in the
sampler process (for everything in between); on leaving, samples are collected and each window is judged.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effllm.results.telemetry import SourceRecord, TelemetrySummary, WindowsRecord
from effllm.telemetry.devices import nvml_uuid
from effllm.telemetry.readings import Readings
from effllm.telemetry.sampler import SamplingLoop
from effllm.telemetry.sampler_process import SamplerProcess
from effllm.telemetry.sources import SOURCES_OF_DEVICE, open_source
from effllm.telemetry.sources.base import NullSource, Source, SourceUnavailable
from effllm.telemetry.sources.host import HostSource
from effllm.telemetry.spool import TICK, SpoolWriter, parquet_loader, spools_to_parquet
from effllm.telemetry.summary import Summary
from effllm.telemetry.validation import validate_windows
from effllm.telemetry.windows import WindowManager, WindowRecord


class Telemetry:
    """Measures a workload over named windows.

    `directory` receives `samples.parquet` and `windows.json`. `device` is "cpu", "cuda" or "cuda:N", or several of the
    last, whose figures are then sums, with each one's own beside them; on CUDA they are synchronised at every edge of a
    window. `period_s` is the time between samples. `sources` are names from
    `effllm.telemetry.sources.OPENERS` (default: all that apply to the device); those this machine lacks make figures
    None, with a reason. `root_pid` is the process whose tree is measured (default: this one).

    A failing instrument never raises into the workload: it makes windows invalid. Misuse (an unknown window, device
    or source name) raises ValueError.
    """

    def __init__(
        self,
        directory: Path,
        device: str | Sequence[str] = "cpu",
        period_s: float = 0.1,
        sources: Sequence[str] | None = None,
        root_pid: int | None = None,
    ):
        self._devices = [device] if isinstance(device, str) else list(device)
        device = self._devices[0]
        kind = device.partition(":")[0]
        if kind not in SOURCES_OF_DEVICE:
            raise ValueError(f"device {device!r}: telemetry knows {', '.join(SOURCES_OF_DEVICE)}")
        if period_s <= 0:
            raise ValueError(f"period_s is {period_s}; it must be above zero")
        self.directory, self.device, self.period_s = Path(directory), device, period_s
        self.root_pid = os.getpid() if root_pid is None else root_pid
        self._names = tuple(SOURCES_OF_DEVICE[kind] if sources is None else sources)
        self.windows: list[WindowRecord] = []
        self._readings: Readings | None = None

    def __enter__(self) -> "Telemetry":
        """Open the sources and wait until the sampler has taken its first samples."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._sources = self._open_sources()
        self._channels = [(s.name, q) for s in self._sources.values() for q in (*s.quantities, TICK)]
        self._channel_of = {channel: index for index, channel in enumerate(self._channels)}
        self._edges = self._spool("edges")
        sampled = [s.name for s in self._sources.values() if s.quantities and not s.in_workload]
        self._sampler = SamplerProcess(self.directory, sampled, self._channels, self.period_s, self._options)
        host = self._sources.get("host")
        if isinstance(host, HostSource):
            # A child of the workload, but not part of it.
            host.exclude.add(self._sampler.pid)
        self._book = WindowManager(
            list(self._sources.values()), self._synchronizer(), self._sampler.check, self._on_edge_reading
        )
        self._thread = self._start_thread([s for s in self._sources.values() if s.quantities and s.in_workload])
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop sampling, write the samples and validate the windows; windows still open become invalid."""
        self._book.abandon()
        self.windows = self._book.closed
        self._stop_thread()
        self._sampler.stop()
        self._edges.close()
        for source in self._sources.values():
            source.close()
        readings = self._readings = self._collect()
        validate_windows(self.windows, list(self._sources.values()), readings, self._sampler.events, self.period_s)
        self._write_windows()

    @property
    def sampler_pid(self) -> int:
        """Process id of the sampler."""
        return self._sampler.pid

    @property
    def sampler_cost(self) -> dict[str, Any] | None:
        """What the sampler used, after the session: `cpu_s`, `run_s`, `readings`, `rss_peak_b`; None if it failed."""
        stopped = [event for event in self._sampler.events if event["event"] == "stopped"]
        return {key: value for key, value in stopped[0].items() if key != "event"} if stopped else None

    def begin_window(self, name: str) -> None:
        """Open a window. Windows may nest, overlap and repeat; only one of a name is open at a time (ValueError).

        Each edge reads every source here, which takes a few ms on a GPU: do not open one for each token.
        """
        self._book.begin(name)

    def end_window(self, name: str) -> WindowRecord:
        """Close the window and return its record. ValueError if none of that name is open."""
        record = self._book.end(name)
        self._edges.flush()
        return record

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """A window around a block; it is invalid when the block raises."""
        self.begin_window(name)
        try:
            yield
        except BaseException as error:
            self._book.end(name, invalid=f"the workload raised {type(error).__name__}")
            raise
        self.end_window(name)

    def pause(self, name: str) -> None:
        """Leave out the time and energy from here to `resume`: saving, evaluation, whatever is not the subject."""
        self._book.pause(name)

    def resume(self, name: str) -> None:
        """Measure again."""
        self._book.resume(name)

    def summary(self, name: str) -> TelemetrySummary:
        """Figures over all windows of that name together (docs/telemetry.md says what each is).

        Available after the session. KeyError for a name that had no window.
        """
        if self._readings is None:
            raise RuntimeError("the samples are complete only after the session: call summary() outside the with block")
        windows = [window for window in self.windows if window.name == name]
        if not windows:
            known = ", ".join(sorted({window.name for window in self.windows})) or "none"
            raise KeyError(f"no window was called {name!r} (there were: {known})")
        return Summary(windows, self._sources, self._readings, self.device, len(self._devices)).figures()

    def _open_sources(self) -> dict[str, Source]:
        self._options: dict[str, Any] = {"root_pid": self.root_pid}
        is_one = len(self._devices) == 1
        workload_options = {**self._options, "device": self.device if is_one else self._devices}
        sources: dict[str, Source] = {}
        for name in self._names:
            if name == "nvml" and self.device != "cpu":
                try:
                    uuids = [nvml_uuid(device) for device in self._devices]
                except SourceUnavailable as error:
                    sources[name] = NullSource(name, str(error))
                    continue
                self._options["uuid"] = workload_options["uuid"] = uuids[0] if is_one else uuids
            sources[name] = open_source(name, workload_options)
        return sources

    def _synchronizer(self) -> Callable[[], None]:
        if self.device == "cpu":
            return lambda: None
        import torch

        def synchronize() -> None:
            for device in self._devices:
                torch.cuda.synchronize(device)

        return synchronize

    def _spool(self, origin: str) -> SpoolWriter:
        path = self.directory / f"{origin}.spool"
        path.unlink(missing_ok=True)
        return SpoolWriter(path)

    def _on_edge_reading(self, source: str, quantity: str, time_ns: int, wall_ns: int, value: float) -> None:
        self._edges.add(self._channel_of[source, quantity], time_ns, wall_ns, value)

    def _start_thread(self, sources: Sequence[Source]) -> threading.Thread | None:
        """Sample what only this process can read. The thread needs the interpreter lock, so its samples may be late;
        peaks do not depend on it, because the allocator keeps them itself."""
        if not sources:
            return None
        self._thread_stop = threading.Event()
        self._thread_spool = self._spool("workload")
        self._thread_losses: list[str] = []
        loop = SamplingLoop(
            sources,
            self._channel_of,
            self.period_s,
            self._thread_spool,
            lambda name, _, reason: self._thread_losses.append(f"{name} failed: {reason}"),
        )

        def run() -> None:
            while loop.step() is not None and not self._thread_stop.wait(self.period_s):
                continue
            loop.finish()

        thread = threading.Thread(target=run, name="telemetry", daemon=True)
        thread.start()
        return thread

    def _stop_thread(self) -> None:
        if self._thread is not None:
            self._thread_stop.set()
            self._thread.join()
            self._thread_spool.close()

    def _collect(self) -> Readings:
        """Turn the spools into one parquet file, from which figures are read."""
        path = self.directory / "samples.parquet"
        names = {"sampler": "sampler", "edges": "edge", "workload": "workload"}
        spools = [(origin, self.directory / f"{stem}.spool") for stem, origin in names.items()]
        spools = [(origin, spool) for origin, spool in spools if spool.exists()]
        units = ["ms" if q == TICK else self._sources[s].quantities[q].unit for s, q in self._channels]
        spools_to_parquet(spools, self._channels, units, path)
        for _, spool in spools:
            spool.unlink()
        return Readings(parquet_loader(path))

    def _write_windows(self) -> None:
        record = WindowsRecord(
            device=",".join(self._devices),
            period_s=self.period_s,
            root_pid=self.root_pid,
            sources={name: _describe(source) for name, source in self._sources.items()},
            sampler={"failure": self._sampler.failure, "cost": self.sampler_cost, "events": self._sampler.events},
            windows=[window.to_dict() for window in self.windows],
        )
        (self.directory / Path(record.FILE).name).write_text(record.to_json())


def _describe(source: Source) -> SourceRecord:
    return SourceRecord(
        available=bool(source.quantities),
        reason=getattr(source, "reason", None),
        quantities={name: asdict(quantity) for name, quantity in source.quantities.items()},
        missing=dict(source.missing),
        facts=dict(source.facts),
        meter=None if source.meter is None else asdict(source.meter),
    )
