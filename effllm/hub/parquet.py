"""Rows of a parquet file, from any of them on."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_rows(
    file: pq.ParquetFile, names: Sequence[str], start: int, stop: int | None, batch_size: int
) -> Iterator[pa.RecordBatch]:
    """Yield the columns `names` of the rows [start, stop) of `file`; row groups outside of it are not read."""
    groups, first, before = [], 0, 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        if end > start and (stop is None or first < stop):
            groups.append(group)
        elif not groups:
            before = end
        first = end
    for batch in file.iter_batches(batch_size=batch_size, row_groups=groups, columns=list(names)):
        end = batch.num_rows if stop is None else stop - before
        part = batch.slice(max(0, start - before), max(0, min(end, batch.num_rows) - max(0, start - before)))
        before += batch.num_rows
        if part.num_rows:
            yield part
