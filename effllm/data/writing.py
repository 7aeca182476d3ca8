"""Files that are written piece by piece, whose errors say which file they are about."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give an operating system's error (a full disk) that comes without a file name the name of `path`.

    Streams and parquet writers leave it out, and without it a stage cannot tell the user what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


class PieceWriter:
    """A context manager that writes pieces of bytes one after the other into a file."""

    def __init__(self, path: Path):
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115  (closed with the writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with named_errors(self._path):
            self._file.close()
        if kind is None:
            self.finish()

    def append(self, content: bytes) -> int:
        """Write a piece; where in the file it begins."""
        begins = self._file.tell()
        with named_errors(self._path):
            self._file.write(content)
        return begins

    def finish(self) -> None:
        """What is written about the pieces, once all of them are there."""
