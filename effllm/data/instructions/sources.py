"""Where conversations come from: the hub, local files, or the Python installation, as rows in a fixed order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from effllm.data.instructions.advice import advice, listed
from effllm.data.instructions.digits import DigitRows
from effllm.data.instructions.pictures import Row, place_of, with_picture
from effllm.data.instructions.questions import QUESTIONS
from effllm.data.instructions.settings import (
    Columns,
    DigitInstructionSource,
    EmbeddedInstructionSource,
    FilesInstructionSource,
    HubInstructionSource,
    InstructionSource,
    PromptResponseColumns,
)
from effllm.data.sources.reading import json_array, json_lines, open_parquet, require_ending
from effllm.errors import UserError
from effllm.hub.dataset import HubDataset

_BATCH_ROWS = 1000
# Images are some megabytes each.
_BATCH_ROWS_WITH_IMAGES = 64
_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".json")


class RowSource(Protocol):
    """A stream of rows, the same ones in the same order each time."""

    label: str
    """How messages name the source."""

    columns: Columns
    """Which columns of a row hold what."""

    def rows(self) -> Iterator[Row]:
        """Yield all rows, with these columns at least; `UserError` for input at fault."""
        ...


def open_source(config: InstructionSource, files: Mapping[str, Path], scratch: Path) -> RowSource:
    """The source that `config` describes.

    `files` are a job's plain input files, in the order to read them; downloads go to `scratch`.
    """
    named = {kind: [path for key, path in files.items() if key.startswith(f"{kind}[")] for kind in ("files", "images")}
    return _OPEN[type(config)](config, named, scratch)


class _HubRows:
    def __init__(self, config: HubInstructionSource, directory: Path):
        self.columns = config.columns
        self._split = config.split
        self._dataset = HubDataset(config.repo, config.name, config.revision, directory)
        self.label = self._dataset.label

    def rows(self) -> Iterator[Row]:
        for batch in self._dataset.batches(self._split, _batch_rows(self.columns)):
            _require_text(self.columns, batch.schema, self.label)
            rows = batch.select(_present(self.columns, batch.schema.names)).to_pylist()
            yield from (with_picture(row, self.columns) for row in rows)


class _FileRows:
    def __init__(self, config: FilesInstructionSource, paths: Sequence[Path], images: Sequence[Path]):
        if not paths:
            raise UserError("the instruction data has no input file: name them in source.paths.")
        for path in paths:
            require_ending(path, _ENDINGS)
            # All footers at once, so that a wrong last file is not found after hours.
            if path.suffix == ".parquet":
                with open_parquet(path) as file:
                    _require_text(config.columns, file.schema_arrow, str(path))
        self.columns = config.columns
        self.label = f"{len(paths)} files"
        self._paths = paths
        self._images = {place_of(path): path for path in images}
        self._folder = None if config.image_folder is None else Path(config.image_folder)

    def rows(self) -> Iterator[Row]:
        for path in self._paths:
            rows = self._parquet_rows(path) if path.suffix == ".parquet" else self._json_rows(path)
            folder = self._folder or path.parent
            yield from (with_picture(row, self.columns, self._images, folder) for row in rows)

    def _parquet_rows(self, path: Path) -> Iterator[Mapping[str, Any]]:
        with open_parquet(path) as file:
            columns = _present(self.columns, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_batch_rows(self.columns), columns=columns):
                yield from _whole(batch, str(path)).to_pylist()

    def _json_rows(self, path: Path) -> Iterator[Mapping[str, Any]]:
        rows = iter(json_array(path) if path.suffix == ".json" else (row for _, row in json_lines(path)))
        # Single rows may lack a column and are counted; where most do, the file is of another form.
        first = list(islice(rows, _BATCH_ROWS))
        needed = set(_needed(self.columns))
        without = [row for row in first if not needed <= row.keys()]
        if len(without) > len(first) / 2:
            _require_columns(self.columns, list(without[0]), str(path))
        yield from chain(first, rows)


class _EmbeddedRows:
    columns: Columns = PromptResponseColumns(kind="prompt_response")

    def __init__(self, config: EmbeddedInstructionSource):
        self.label = f"questions about the standard library ({config.questions})"
        self._questions = QUESTIONS[config.questions]

    def rows(self) -> Iterator[Row]:
        for prompt, response in self._questions():
            yield Row({"prompt": prompt, "response": response})


_OPEN: dict[type, Callable[..., RowSource]] = {
    HubInstructionSource: lambda config, files, scratch: _HubRows(config, scratch),
    FilesInstructionSource: lambda config, files, scratch: _FileRows(config, files["files"], files["images"]),
    EmbeddedInstructionSource: lambda config, files, scratch: _EmbeddedRows(config),
    DigitInstructionSource: lambda config, files, scratch: DigitRows(config),
}


def _batch_rows(columns: Columns) -> int:
    return _BATCH_ROWS if columns.image is None else _BATCH_ROWS_WITH_IMAGES


def _needed(columns: Columns) -> list[str]:
    return list(dict.fromkeys([*columns.needed(), *([] if columns.image is None else [columns.image])]))


def _require_columns(columns: Columns, found: Sequence[str], where: str) -> None:
    missing = [name for name in _needed(columns) if name not in found]
    if missing:
        raise UserError(f"{where}: no column {listed(missing)}; its columns are {listed(found)}: {advice(found)}.")


def _require_text(columns: Columns, schema: pa.Schema, where: str) -> None:
    """Raise `UserError` for a table that lacks a column, or has one that can hold no text."""
    _require_columns(columns, schema.names, where)
    for name in _present(columns, schema.names):
        if schema.names.count(name) > 1:
            raise UserError(f"{where}: column {name!r} occurs twice; rename one.")
        found = schema.field(name).type
        if name in columns.names() and not _holds_text(found):
            raise UserError(
                f"{where}: column {name!r} has type {found}, which holds no text; its columns are "
                f"{listed(schema.names)}: name others in source.columns, or convert it."
            )


def _present(columns: Columns, found: Sequence[str]) -> list[str]:
    """The columns to read, of those that there are: a system message or an input may be missing from all rows."""
    return [name for name in dict.fromkeys((*columns.names(), columns.image)) if name is not None and name in found]


def _holds_text(found: pa.DataType) -> bool:
    kind = pa.types
    if kind.is_dictionary(found):
        return _holds_text(found.value_type)
    texts = (kind.is_string, kind.is_large_string, kind.is_string_view, kind.is_null)
    nested = (kind.is_struct, kind.is_list, kind.is_large_list, kind.is_fixed_size_list)
    return any(check(found) for check in texts + nested)


def _whole(batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
    try:
        # Parquet readers trust the file; this finds damaged offsets and text that is not UTF-8.
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise UserError(f"{where}: {error}; the data is damaged: fetch or write it again.") from None
    return batch
