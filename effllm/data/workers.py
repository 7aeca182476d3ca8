"""Work in pieces over the cores of a job: every piece by itself, results in order, the same whatever the number."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import TypeVar

from effllm.runtime.launch import die_with_parent

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def job_threads() -> int:
    """Cores that the workflow gave to this stage (`OMP_NUM_THREADS`); 1 for one that was started without."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(value)) if value.isdecimal() else 1


def in_order(
    pool: Executor, function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[_Result]:
    """Yield `function(item)` in the order of the items, of which so many are taken ahead."""
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


class Workers:
    """A context manager: `count` processes that end with this one, or this process itself for one."""

    def __init__(self, count: int):
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Yield `function(item)` in the order of the items, of which two for each process are taken ahead.

        `function` and items are pickled. The first error ends it.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        yield from in_order(self._pool, function, items, 2 * self.count)

    def __enter__(self) -> "Workers":
        if self.count > 1:
            # Not by a fork: the libraries have threads that it would not copy.
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    die_with_parent(parent)
    # Each process has one core of the job: libraries in Rust read this when they first work.
    os.environ["RAYON_NUM_THREADS"] = "1"
    import pyarrow as pa

    pa.set_cpu_count(1)
