"""Where documents come from: the hub, local files, or the Python installation, behind one interface."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from effllm.data.sources.embedded import EmbeddedSource
from effllm.data.sources.files import FilesSource
from effllm.data.sources.hub import HubSource
from effllm.study.data import CorpusSource, EmbeddedCorpusSource, FilesCorpusSource, HubCorpusSource


class Source(Protocol):
    """A stream of documents in a fixed order and in the columns of `effllm.data.schema.SCHEMA`."""

    label: str
    """How messages name the source."""

    total: int | None
    """Number of documents, where it is known without reading them."""

    scored: bool
    """Whether the source fills `int_score`; without it a minimum score is meaningless."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all documents, the same ones in the same order each time; `UserError` for input at fault."""
        ...


_OPEN: dict[type, Callable[..., Source]] = {
    HubCorpusSource: lambda config, files, scratch: HubSource(
        config.repo, config.name, config.split, config.revision, scratch
    ),
    FilesCorpusSource: lambda config, files, scratch: FilesSource(files),
    EmbeddedCorpusSource: lambda config, files, scratch: EmbeddedSource(config.minimum_characters),
}


def open_source(config: CorpusSource, files: Mapping[str, Path], scratch: Path) -> Source:
    """The source that `config` describes.

    `files` are a job's plain input files, `files[0]`, `files[1]`, ... in the order to read them; downloads go to
    `scratch`.
    """
    ordered = [files[f"files[{index}]"] for index in range(len(files))]
    return _OPEN[type(config)](config, ordered, scratch)
