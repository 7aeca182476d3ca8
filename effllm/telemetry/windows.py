"""Windows: the named stretches of a run that figures are about, with readings taken at their edges.

A window is a list of segments (more than one where it was paused). At each edge the device is synchronised, so that
the work belongs to the window that launched it, and every source is read in the workload's process. Counters need
nothing else; gauges get samples in between from the sampler.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from effllm.telemetry.sources.base import Source, SourceLost

EdgeSink = Callable[[str, str, int, int, float], None]
"""Takes one reading made at an edge: source, quantity, monotonic ns, wall ns, value."""


@dataclass(frozen=True)
class Edge:
    """Where a segment starts or ends, and the counters there.

    `time_ns` is the edge itself. Sources are read just outside the segment, between `first_read_ns` and
    `last_read_ns`, so that reading costs the window nothing. `counters` maps "source.quantity" to (time_ns, value).
    """

    kind: Literal["begin", "pause", "resume", "end"]
    time_ns: int
    wall_ns: int
    first_read_ns: int
    last_read_ns: int
    counters: dict[str, tuple[int, float]]


@dataclass(frozen=True)
class Segment:
    """A stretch of a window without a pause in it."""

    start: Edge
    end: Edge

    @property
    def start_s(self) -> float:
        """Monotonic time of its start in s."""
        return self.start.time_ns / 1e9

    @property
    def end_s(self) -> float:
        """Monotonic time of its end in s."""
        return self.end.time_ns / 1e9

    @property
    def duration_s(self) -> float:
        """Its length in s."""
        return (self.end.time_ns - self.start.time_ns) / 1e9


@dataclass
class WindowRecord:
    """One window: the `index`-th of its `name`, from 0.

    `status` is "ok", or "invalid" with the `reason`. Until the session has ended it covers only what the workload's
    process can know; whether the samples are complete is judged then.
    """

    name: str
    index: int
    edges: list[Edge] = field(default_factory=list)
    status: Literal["ok", "invalid"] = "ok"
    reason: str | None = None

    def invalidate(self, reason: str) -> None:
        """Mark invalid. The first reason stands: later ones tend to follow from it."""
        if self.status == "ok":
            self.status, self.reason = "invalid", reason

    @property
    def segments(self) -> list[Segment]:
        """Its stretches of running time; a stretch still open is not among them."""
        pairs = zip(self.edges[::2], self.edges[1::2], strict=False)
        return [Segment(start, end) for start, end in pairs]

    @property
    def paused(self) -> list[tuple[int, int]]:
        """(start, end) of each pause, monotonic ns."""
        return [(a.time_ns, b.time_ns) for a, b in zip(self.edges[1:-1:2], self.edges[2:-1:2], strict=True)]

    @property
    def start_ns(self) -> int:
        """Monotonic time at which it began, in ns."""
        return self.edges[0].time_ns

    @property
    def end_ns(self) -> int:
        """Monotonic time at which it ended, in ns."""
        return self.edges[-1].time_ns

    @property
    def duration_s(self) -> float:
        """Running time in s, pauses left out."""
        return math.fsum(segment.duration_s for segment in self.segments)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, with everything a reader needs to recompute the figures."""
        return {
            "name": self.name,
            "index": self.index,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "start_wall_ns": self.edges[0].wall_ns,
            "end_wall_ns": self.edges[-1].wall_ns,
            "paused": self.paused,
            "duration_s": self.duration_s,
            "status": self.status,
            "reason": self.reason,
            "edges": [vars(edge) for edge in self.edges],
        }


class WindowManager:
    """Opens and closes windows, and reads the sources at their edges.

    `synchronize` waits for the device. `check` answers None, or why samples are no longer being taken. `on_reading`
    gets every reading made at an edge. The clocks may be given in tests.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        synchronize: Callable[[], None],
        check: Callable[[], str | None],
        on_reading: EdgeSink,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ):
        self._sources, self._synchronize, self._check, self._on_reading = sources, synchronize, check, on_reading
        self._monotonic_ns, self._wall_ns = monotonic_ns, wall_ns
        self._open: dict[str, WindowRecord] = {}
        self._lock = threading.Lock()
        self._lost: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self.closed: list[WindowRecord] = []

    def begin(self, name: str) -> None:
        """Open a window; ValueError where one of that name is open already."""
        with self._lock:
            if name in self._open:
                raise ValueError(f"window {name!r} is already open; end it first, or give this one another name")
            index = self._counts.get(name, 0)
            self._counts[name] = index + 1
            record = WindowRecord(name, index)
            record.edges.append(self._edge("begin"))
            self._open[name] = record

    def end(self, name: str, invalid: str | None = None) -> WindowRecord:
        """Close the window and return its record, invalid for the reason given if any. ValueError if not open."""
        with self._lock:
            record = self._get(name)
            if self._is_paused(record):
                # What follows the last pause is not part of the window: it ends where that pause began.
                self._on_close(record, invalid)
                return record
            record.edges.append(self._edge("end"))
            self._on_close(record, invalid)
            return record

    def _on_close(self, record: WindowRecord, invalid: str | None) -> None:
        del self._open[record.name]
        self.closed.append(record)
        for reason in filter(None, [invalid, *self._lost.values(), self._check()]):
            record.invalidate(reason)

    def pause(self, name: str) -> None:
        """Stop counting time and energy for the window; ValueError if it is not open or paused already."""
        with self._lock:
            record = self._get(name)
            if self._is_paused(record):
                raise ValueError(f"window {name!r} is paused already")
            record.edges.append(self._edge("pause"))

    def resume(self, name: str) -> None:
        """Count time and energy again; ValueError if the window is not open or not paused."""
        with self._lock:
            record = self._get(name)
            if not self._is_paused(record):
                raise ValueError(f"window {name!r} is not paused")
            record.edges.append(self._edge("resume"))

    def abandon(self) -> None:
        """Close what is still open at the end of the session, as invalid."""
        for name in list(self._open):
            self.end(name, invalid="the window was never ended")

    def _get(self, name: str) -> WindowRecord:
        if name not in self._open:
            known = ", ".join(map(repr, self._open)) or "none"
            raise ValueError(f"window {name!r} is not open (open: {known})")
        return self._open[name]

    @staticmethod
    def _is_paused(record: WindowRecord) -> bool:
        return len(record.edges) % 2 == 0

    def _edge(self, kind: Literal["begin", "pause", "resume", "end"]) -> Edge:
        """Synchronise, then read outside the segment: before the edge that starts one, after the edge that ends one.

        The order of the sources is reversed at the end, so that each is read equally long before and after, and
        what is read twice spans the segment as nearly as it can.
        """
        self._synchronize()
        opening = kind in ("begin", "resume")
        first_ns = self._monotonic_ns()
        wall_ns = self._wall_ns()
        counters = self._read_sources(self._sources if opening else reversed(self._sources))
        last_ns = self._monotonic_ns()
        return Edge(kind, last_ns if opening else first_ns, wall_ns, first_ns, last_ns, counters)

    def _read_sources(self, sources: Iterable[Source]) -> dict[str, tuple[int, float]]:
        counters = {}
        for source in sources:
            if source.name in self._lost:
                continue
            before_ns = self._monotonic_ns()
            try:
                values = source.read_at_edge()
            except SourceLost as error:
                self._lost[source.name] = f"{source.name} failed at the edge of a window: {error}"
                continue
            at_ns, wall_ns = (before_ns + self._monotonic_ns()) // 2, self._wall_ns()
            for quantity, value in values.items():
                self._on_reading(source.name, quantity, at_ns, wall_ns, value)
                if source.quantities[quantity].kind == "counter" and not math.isnan(value):
                    counters[f"{source.name}.{quantity}"] = (at_ns, value)
        return counters
