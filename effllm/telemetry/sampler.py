"""The sampler process: reads the sources at their periods, beside the workload and outside its interpreter lock.

Started as `python -m effllm.telemetry.sampler` by `effllm.telemetry.sampler_process`. It speaks JSON lines:
one configuration line on standard input, then `ready`, `lost` and `stopped` events on standard output. It
ends when its standard input closes or its parent is gone, so it cannot outlive the workload, even one that
was killed.

Only light standard-library modules are imported here: the process must be ready before the workload goes on.
"""

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.telemetry.sources import open_source
from effllm.telemetry.sources.base import NullSource, Source, SourceLost
from effllm.telemetry.spool import TICK, ChangeFilter, SpoolWriter

# A parent that dies is noticed within this time even when all periods are longer.
_LONGEST_WAIT_S = 1.0


@dataclass
class _Schedule:
    source: Source
    period_ns: int
    due_ns: int


class SamplingLoop:
    """Reads each source when it is due and writes what changed.

    `channels` maps (source, quantity) to a channel index; it holds a `TICK` channel for every source.
    `on_lost` is called with the source's name, the time and the reason when one can no longer be read; the
    others go on. `monotonic_ns` and `wall_ns` are the clocks; only the first one schedules or is integrated
    over.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        channels: Mapping[tuple[str, str], int],
        period_s: float,
        writer: SpoolWriter,
        on_lost: Callable[[str, int, str], None],
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ):
        self._channels, self._writer, self._on_lost = channels, writer, on_lost
        self._monotonic_ns, self._wall_ns = monotonic_ns, wall_ns
        self._filter = ChangeFilter(writer)
        start_ns = monotonic_ns()
        self._schedules = [
            _Schedule(source, int(max(period_s, source.min_period_s) * 1e9), start_ns) for source in sources
        ]
        self.readings = 0

    def step(self) -> int | None:
        """Read every source that is due; returns when the next one is (monotonic ns), None when all are lost."""
        for schedule in list(self._schedules):
            if schedule.due_ns > self._monotonic_ns():
                continue
            self._read(schedule)
            # Readings that were missed are not made up for: they would bunch up and measure nothing new.
            late_ns = max(0, self._monotonic_ns() - schedule.due_ns)
            schedule.due_ns += (late_ns // schedule.period_ns + 1) * schedule.period_ns
        self._writer.flush()
        return min((schedule.due_ns for schedule in self._schedules), default=None)

    def _read(self, schedule: _Schedule) -> None:
        source = schedule.source
        before_ns = self._monotonic_ns()
        try:
            values = source.read()
        except SourceLost as error:
            self._schedules.remove(schedule)
            self._on_lost(source.name, before_ns, str(error))
            return
        after_ns = self._monotonic_ns()
        at_ns, wall_ns = (before_ns + after_ns) // 2, self._wall_ns()
        for quantity, value in values.items():
            self._filter.add(self._channels[source.name, quantity], at_ns, wall_ns, value)
        self._writer.add(self._channels[source.name, TICK], at_ns, wall_ns, (after_ns - before_ns) / 1e6)
        self.readings += 1

    def finish(self) -> None:
        """Write what is still held back."""
        self._filter.finish()
        self._writer.flush()


def _emit_event(event: str, **content: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **content}) + "\n")
    sys.stdout.flush()


def _rss_peak_b() -> int:
    """Most resident bytes this process ever had. (getrusage would count those of the process it was forked from.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _wait(parent_pid: int, due_ns: int | None) -> bool:
    """Sleep until `due_ns`; false once standard input says stop, or the parent is gone."""
    while True:
        wait_s = _LONGEST_WAIT_S if due_ns is None else (due_ns - time.monotonic_ns()) / 1e9
        # A request to stop is never written, only the closing of the pipe: a killed parent closes it too. But
        # a forked child of the workload may keep the pipe open, hence the second look at who the parent is.
        # (PR_SET_PDEATHSIG would fire too early: when the thread that started this process ends.)
        readable, _, _ = select.select([sys.stdin], [], [], min(max(wait_s, 0.0), _LONGEST_WAIT_S))
        if readable or os.getppid() != parent_pid:
            return False
        if due_ns is not None and time.monotonic_ns() >= due_ns:
            return True


def main() -> None:
    """Run until told to stop. The configuration is described at `effllm.telemetry.sampler_process`."""
    # Interrupts go to the whole process group; the workload decides when measuring ends, by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = json.loads(sys.stdin.readline())
    options = {**config["options"], "exclude": [os.getpid()]}
    sources = [open_source(name, options) for name in config["sources"]]
    writer = SpoolWriter(Path(config["spool"]))
    channels = {(source, quantity): index for index, (source, quantity) in enumerate(config["channels"])}

    def on_lost(name: str, time_ns: int, reason: str) -> None:
        _emit_event("lost", source=name, time_ns=time_ns, reason=reason)

    for source in sources:
        if not source.quantities:
            reason = source.reason if isinstance(source, NullSource) else "it offers no quantity there"
            on_lost(source.name, time.monotonic_ns(), f"not readable in the sampler: {reason}")
    readable = [source for source in sources if source.quantities]
    started_ns = time.monotonic_ns()
    loop = SamplingLoop(readable, channels, config["period_s"], writer, on_lost)
    due_ns = loop.step()
    _emit_event("ready", sources=[source.name for source in readable], pid=os.getpid())
    while _wait(config["parent_pid"], due_ns):
        due_ns = loop.step()
    loop.finish()
    writer.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    if os.getppid() == config["parent_pid"]:
        _emit_event(
            "stopped",
            readings=loop.readings,
            run_s=(time.monotonic_ns() - started_ns) / 1e9,
            cpu_s=usage.ru_utime + usage.ru_stime,
            rss_peak_b=_rss_peak_b(),
        )


if __name__ == "__main__":
    main()
