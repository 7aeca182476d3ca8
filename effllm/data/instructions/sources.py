"""Where conversations come from: the hub, local files, or the Python installation, as rows in a fixed order."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from effllm.data.instructions.questions import QUESTIONS
from effllm.data.sources.reading import json_lines, open_parquet
from effllm.errors import UserError
from effllm.hub.dataset import HubDataset
from effllm.study.instructions import (
    ChatColumns,
    Columns,
    EmbeddedInstructionSource,
    FilesInstructionSource,
    HubInstructionSource,
    InstructionSource,
    PromptResponseColumns,
)

_BATCH_ROWS = 1000
_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".json")


class RowSource(Protocol):
    """A stream of rows, the same ones in the same order each time."""

    label: str
    """How messages name the source."""

    columns: Columns
    """Which columns of a row hold what."""

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield all rows, with these columns at least; `UserError` for input at fault."""
        ...


def open_source(config: InstructionSource, files: Mapping[str, Path], scratch: Path) -> RowSource:
    """The source that `config` describes.

    `files` are a job's plain input files, in the order to read them; downloads go to `scratch`.
    """
    return _OPEN[type(config)](config, [files[f"files[{index}]"] for index in range(len(files))], scratch)


class _HubRows:
    def __init__(self, config: HubInstructionSource, directory: Path):
        self.columns = config.columns
        self._split = config.split
        self._dataset = HubDataset(config.repo, config.name, config.revision, directory)
        self.label = self._dataset.label

    def rows(self) -> Iterator[Mapping[str, Any]]:
        for batch in self._dataset.batches(self._split):
            _require_columns(self.columns, batch.schema.names, self.label)
            yield from batch.select(self.columns.names()).to_pylist()


class _FileRows:
    def __init__(self, config: FilesInstructionSource, paths: Sequence[Path]):
        if not paths:
            raise UserError("the instruction data has no input file: name them in source.paths.")
        for path in paths:
            if not path.name.endswith(_ENDINGS):
                raise UserError(f"{path}: the ending is unknown; use {', '.join(_ENDINGS)} files.")
            # All footers at once, so that a wrong last file is not found after hours.
            if path.suffix == ".parquet":
                with open_parquet(path) as file:
                    _require_columns(config.columns, file.schema_arrow.names, str(path))
        self.columns = config.columns
        self.label = f"{len(paths)} files"
        self._paths = paths

    def rows(self) -> Iterator[Mapping[str, Any]]:
        for path in self._paths:
            if path.suffix == ".parquet":
                yield from self._parquet_rows(path)
            else:
                yield from self._json_rows(path)

    def _parquet_rows(self, path: Path) -> Iterator[Mapping[str, Any]]:
        with open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=self.columns.names()):
                yield from _whole(batch, str(path)).to_pylist()

    def _json_rows(self, path: Path) -> Iterator[Mapping[str, Any]]:
        objects = _json_array(path) if path.suffix == ".json" else (row for _, row in json_lines(path))
        for number, row in enumerate(objects):
            # A later row may lack a value, and is counted; a first one that lacks it is of another form.
            if number == 0:
                _require_columns(self.columns, list(row), str(path))
            yield row


class _EmbeddedRows:
    columns = PromptResponseColumns(kind="prompt_response")

    def __init__(self, config: EmbeddedInstructionSource):
        self.label = f"questions about the standard library ({config.questions})"
        self._questions = QUESTIONS[config.questions]

    def rows(self) -> Iterator[Mapping[str, Any]]:
        for prompt, response in self._questions():
            yield {"prompt": prompt, "response": response}


_OPEN: dict[type, Callable[..., RowSource]] = {
    HubInstructionSource: lambda config, files, scratch: _HubRows(config, scratch),
    FilesInstructionSource: lambda config, files, scratch: _FileRows(config, files),
    EmbeddedInstructionSource: lambda config, files, scratch: _EmbeddedRows(config),
}


def _require_columns(columns: Columns, found: Sequence[str], where: str) -> None:
    # A system message may be missing from a row, so its column may be missing from the first row.
    needed = (
        columns.names() if isinstance(columns, ChatColumns) else [n for n in columns.names() if n != columns.system]
    )
    missing = [name for name in needed if name not in found]
    if missing:
        raise UserError(
            f"{where}: no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, found))}: name "
            "those that hold the conversation in source.columns."
        )


def _whole(batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
    try:
        # Parquet readers trust the file; this finds damaged offsets and text that is not UTF-8.
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise UserError(f"{where}: {error}; the data is damaged: fetch or write it again.") from None
    return batch


def _json_array(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON file that is one list of them, as medical-o1-reasoning-SFT is published."""
    try:
        rows = json.loads(path.read_bytes())
        json.dumps(rows, ensure_ascii=False).encode()
    except ValueError as error:
        raise UserError(f"{path} is not JSON text ({error}); correct it.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is not a list of JSON objects; write one, or one object per line in a .jsonl file.")
    return rows
