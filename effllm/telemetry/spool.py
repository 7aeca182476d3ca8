"""How samples reach the disk: fixed-size records appended to a spool while measuring, one parquet file afterwards.

A spool needs no footer, so everything written before a sampler is killed stays readable, which parquet cannot
offer. This module imports nothing but the standard library at load time, because the sampler process uses it.
"""

import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECORD = struct.Struct("<Hqqd")
"""Channel index, monotonic time in ns, wall time in ns, value (NaN: could not be read)."""

TICK = "read_ms"
"""Quantity recorded for every reading of a source, changed or not: how long it took. Its times prove liveness."""

_CHUNK_RECORDS = 1 << 18


class SpoolWriter:
    """Appends records; `flush` hands them to the kernel, so that a killed process loses none."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._buffer = bytearray()

    def add(self, channel: int, monotonic_ns: int, wall_ns: int, value: float) -> None:
        """Append one record to the buffer."""
        self._buffer += RECORD.pack(channel, monotonic_ns, wall_ns, value)

    def flush(self) -> None:
        """Write the buffer. Raises OSError where the disk is full."""
        view = memoryview(self._buffer)
        while view:
            view = view[os.write(self._file, view) :]
        view.release()
        self._buffer.clear()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        os.close(self._file)


class ChangeFilter:
    """Drops repeats of an unchanged value, keeping the first and the last of each run of equal values.

    Sensors update more slowly than they can be asked. What is dropped lies on the straight line between what
    is kept, so trapezoidal integrals do not change by a bit. `keep_alive_ns` bounds how long a repeat is held
    back, and with that what a killed sampler loses.
    """

    def __init__(self, writer: SpoolWriter, keep_alive_ns: int = 5_000_000_000):
        self._writer = writer
        self._keep_alive_ns = keep_alive_ns
        self._written: dict[int, tuple[int, float]] = {}
        self._held_back: dict[int, tuple[int, int, float]] = {}

    def add(self, channel: int, monotonic_ns: int, wall_ns: int, value: float) -> None:
        """Take one reading of a channel."""
        last = self._written.get(channel)
        if last is not None and monotonic_ns - last[0] < self._keep_alive_ns and _same(value, last[1]):
            self._held_back[channel] = (monotonic_ns, wall_ns, value)
            return
        self._release(channel)
        self._write(channel, monotonic_ns, wall_ns, value)

    def _release(self, channel: int) -> None:
        if channel in self._held_back:
            self._write(channel, *self._held_back.pop(channel))

    def _write(self, channel: int, monotonic_ns: int, wall_ns: int, value: float) -> None:
        self._writer.add(channel, monotonic_ns, wall_ns, value)
        self._written[channel] = (monotonic_ns, value)

    def finish(self) -> None:
        """Write what is held back."""
        for channel in list(self._held_back):
            self._release(channel)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def spools_to_parquet(
    spools: Sequence[tuple[str, Path]], channels: Sequence[tuple[str, str]], units: Sequence[str], out: Path
) -> int:
    """Collect spools, given as (origin, path), into one parquet file; returns the number of samples.

    Columns: `time_ns` (monotonic), `wall_ns`, `source`, `quantity`, `unit`, `origin`, `value`. Rows of a
    spool keep their order, which is by time except where a repeat was held back. A record cut off by a kill
    is left out.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"time_ns": pa.int64(), "wall_ns": pa.int64(), "source": pa.string(), "quantity": pa.string()}
    schema = pa.schema([*columns.items(), ("unit", pa.string()), ("origin", pa.string()), ("value", pa.float64())])
    layout = np.dtype([("channel", "<u2"), ("time_ns", "<i8"), ("wall_ns", "<i8"), ("value", "<f8")])
    labels = [pa.array(column) for column in ([s for s, _ in channels], [q for _, q in channels], list(units))]
    total = 0
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for origin, path in spools:
            with open(path, "rb") as file:
                while block := file.read(_CHUNK_RECORDS * RECORD.size):
                    records = np.frombuffer(block[: len(block) // RECORD.size * RECORD.size], dtype=layout)
                    names = [label.take(pa.array(records["channel"])) for label in labels]
                    times = [pa.array(records[name]) for name in ("time_ns", "wall_ns")]
                    origins = pa.repeat(pa.scalar(origin), len(records))
                    arrays = [*times, *names, origins, pa.array(records["value"])]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                    total += len(records)
    return total


def parquet_loader(path: Path) -> "Callable[[str, str], tuple[NDArray, NDArray]]":
    """A function (source, quantity) -> (times in ns, values) that reads one quantity from the file at a time."""
    import pyarrow.parquet as pq

    def load(source: str, quantity: str) -> "tuple[NDArray, NDArray]":
        wanted = [("source", "=", source), ("quantity", "=", quantity)]
        table = pq.read_table(path, columns=["time_ns", "value"], filters=wanted)
        return table["time_ns"].to_numpy(), table["value"].to_numpy()

    return load
