"""Captioned images and clips of the hub: rows of a dataset, or files of its repository."""

import io
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa

from effllm.data.captions.found import SUFFIXES, Files, Found
from effllm.data.captions.settings import HubFilesWithCaptions, HubRowsWithCaptions
from effllm.errors import UserError
from effllm.hub.dataset import HubDataset
from effllm.hub.repository import HubFile, Repository

# Rows in memory at once: images as files, of up to some megabytes each.
_BATCH_ROWS = 64


class HubRows:
    """The rows of a split, in its order, that the study asks for."""

    def __init__(self, source: HubRowsWithCaptions, directory: Path):
        self._dataset = HubDataset(source.repo, source.name, source.revision, directory)
        self._source = source
        self.label = self._dataset.label

    def found(self) -> Iterator[Found]:
        """An image's file, which may be damaged, and its caption, which may be missing."""
        columns, wanted = self._source.columns, self._source.where
        names = {column: self._dataset.class_names(column) for column in (columns.caption, *wanted)}
        for column, text in wanted.items():
            if names[column] and text not in names[column]:
                raise UserError(
                    f"{self.label}: {text!r} is no class of column {column!r}, which has {', '.join(names[column])}: "
                    "name one of them in where."
                )
        row = -1
        for batch in self._dataset.batches(self._source.split, _BATCH_ROWS):
            self._require(batch.schema, names)
            texts = {column: _texts(batch.column(column), classes) for column, classes in names.items()}
            for index in range(batch.num_rows):
                row += 1
                if any(texts[column][index] != text for column, text in wanted.items()):
                    continue
                content = batch.column(columns.image)[index].as_py()
                data = content["bytes"] if isinstance(content, dict) else content
                caption = texts[columns.caption][index]
                if not data:
                    yield Found(f"row {row}", reason="without_image")
                elif caption is None:
                    yield Found(f"row {row}", reason="without_caption")
                else:
                    yield Found(f"row {row}", caption, [io.BytesIO(data)])

    def _require(self, schema: pa.Schema, names: dict[str, list[str]]) -> None:
        """`UserError` for columns that are not there, or of another type."""
        kinds, image = pa.types, self._source.columns.image
        for name in (image, *names):
            if name not in schema.names:
                raise UserError(
                    f"{self.label}: no column {name!r}; its columns are {', '.join(schema.names)}: name one in columns "
                    "and where."
                )
        kind = schema.field(image).type
        if kinds.is_struct(kind) and any(field.name == "bytes" for field in kind):
            kind = kind.field("bytes").type
        if not (kinds.is_binary(kind) or kinds.is_large_binary(kind)):
            raise UserError(
                f"{self.label}: column {image!r} has type {kind}, which holds no image files; name another."
            )
        for name, classes in names.items():
            kind = schema.field(name).type
            if not (kinds.is_string(kind) or kinds.is_large_string(kind) or (classes and kinds.is_integer(kind))):
                raise UserError(
                    f"{self.label}: column {name!r} has type {kind}, which is neither text nor classes with names; "
                    "name another."
                )


def _texts(values: Any, classes: Sequence[str]) -> list[str | None]:
    if not classes:
        found: list[str | None] = values.to_pylist()
        return found
    # A row without a class has -1.
    return [classes[number] if number is not None and number >= 0 else None for number in values.to_pylist()]


def needed_files(repository: Repository, patterns: Sequence[str]) -> list[HubFile]:
    """Images, videos and captions of a repository whose paths match; `UserError` where there are none."""
    files = [file for file in repository.files() if any(fnmatch(file.path, pattern) for pattern in patterns)]
    files = [file for file in files if Path(file.path).suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(
            f"{repository.label} has no images, videos and captions (.txt) of {', '.join(patterns)}: name other paths, "
            "or read its rows by kind hub."
        )
    return files


def hub_files(source: HubFilesWithCaptions, directory: Path, is_clip: bool) -> Files:
    """The files of a repository, fetched below `directory`, which should survive a killed run."""
    repository = Repository("dataset", source.repo, source.revision)
    files = needed_files(repository, source.paths)
    directory.mkdir(exist_ok=True)
    repository.fetch(files, directory)
    return Files([directory / file.path for file in files], is_clip, directory, repository.label)
