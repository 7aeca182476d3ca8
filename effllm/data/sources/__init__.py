"""Where documents come from: the hub, local files, or the Python installation, behind one interface."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from effllm.data.settings import CorpusSource, EmbeddedCorpusSource, FilesCorpusSource, HubCorpusSource
from effllm.data.sources.embedded import EmbeddedSource
from effllm.data.sources.files import FilesSource
from effllm.data.sources.hub import HubSource


class Unit(Protocol):
    """A part of a source that is read by itself, such as a file, on any process: it can be pickled."""

    label: str
    """How messages name it."""

    is_seekable: bool
    """Whether its rows can be read again, from any of them, until the stage has ended."""

    def fetch(self) -> None:
        """Bring it to this machine, if it is not there; `UserError` where that fails."""
        ...

    def batches(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the columns `names` of the rows [start, stop), the same ones in the same order each time.

        One that is not seekable yields all of its rows. `UserError` for input at fault.
        """
        ...

    def release(self) -> None:
        """Give back the room of what is not seekable, once it was read."""
        ...


class Source(Protocol):
    """Documents in a fixed order and in the columns of `effllm.data.schema.SCHEMA`: its units, one after the other."""

    label: str
    """How messages name the source."""

    total: int | None
    """Number of documents, where it is known without reading them."""

    scored: bool
    """Whether the source fills `int_score`; without it a minimum score is meaningless."""

    def units(self) -> Sequence[Unit]:
        """Its parts in order; `UserError` for a source that cannot be opened."""
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
