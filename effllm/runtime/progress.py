"""How far a long loop is: a bar on a terminal, and elsewhere a line that the launcher relays to the user."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
LINE_INTERVAL_S = 10.0


class Progress:
    """Counts up to `total` (or without end): a context manager with `update(n)`.

    On a terminal it draws a bar on standard error. Elsewhere it prints `progress: <label>: ...` at most every
    `LINE_INTERVAL_S` seconds, so that a loop shorter than that prints nothing.
    """

    def __init__(self, total: int | None = None, *, unit: str, label: str):
        self.count = 0
        self._total = total
        self._unit = unit
        self._label = label
        self._lock = threading.Lock()
        self._started = self._printed = time.monotonic()
        self._bar = tqdm(total=total, unit=f" {unit}", desc=label) if sys.stderr.isatty() else None

    def update(self, n: int = 1) -> None:
        """Count `n` more; any thread may."""
        with self._lock:
            self.count += n
            if self._bar is not None:
                self._bar.update(n)
            elif time.monotonic() - self._printed >= LINE_INTERVAL_S:
                self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        of_total = f"/{self._total:,} ({self.count / self._total:.0%})" if self._total else ""
        rate = self.count / (self._printed - self._started)
        print(f"progress: {self._label}: {self.count:,}{of_total} {self._unit}, {rate:,.1f}/s", flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def progress(iterable: Iterable[_Item], total: int | None = None, *, unit: str, label: str) -> Iterator[_Item]:
    """Yield from `iterable`, counting each item as one `unit`."""
    with Progress(total, unit=unit, label=label) as bar:
        for item in iterable:
            yield item
            bar.update()
