"""Files that grow by pieces, and that a later run of a killed stage goes on with."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from effllm.data.writing import named_errors
from effllm.runtime.artifact import write_text

KEPT_EVERY_S = 10.0
"""So much work at most is done again."""


class Growing:
    """Files in a directory that survives a kill, each of which gets a piece at a time.

    count: items whose pieces are there. shapes: of what pieces are made, by a name, kept beside them.
    """

    def __init__(self, directory: Path, name: str):
        self._directory, self._note = directory, directory / f"{name}.json"
        self.count = 0
        self.shapes: dict[str, list[int]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._kept_at = time.monotonic()
        if self._note.exists():
            self._go_on(**json.loads(self._note.read_text()))

    def _go_on(self, count: int, shapes: dict[str, list[int]], sizes: dict[str, int]) -> None:
        paths = {self._directory / file: size for file, size in sizes.items()}
        if any(not path.exists() or path.stat().st_size < size for path, size in paths.items()):
            return
        for file, size in sizes.items():
            self._files[file] = stream = open(self._directory / file, "r+b")  # noqa: SIM115  (closed at the end)
            # What came after the note may not be whole.
            stream.truncate(size)
            stream.seek(size)
        self.count, self.shapes = count, shapes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._keep()
        for stream in self._files.values():
            stream.close()

    def append(self, pieces: Mapping[str, bytes], items: int) -> None:
        """Write the pieces of some items, by file."""
        for file, piece in pieces.items():
            path = self._directory / file
            with named_errors(path):
                if file not in self._files:
                    self._files[file] = open(path, "wb")  # noqa: SIM115  (closed at the end)
                self._files[file].write(piece)
        self.count += items
        if time.monotonic() - self._kept_at >= KEPT_EVERY_S:
            self._keep()

    def publish(self, directory: Path) -> None:
        """Move the files, once they are closed, to where they belong."""
        for file in self._files:
            (self._directory / file).rename(directory / file)

    def _keep(self) -> None:
        for file, stream in self._files.items():
            with named_errors(self._directory / file):
                stream.flush()
                os.fsync(stream.fileno())
        sizes = {file: stream.tell() for file, stream in self._files.items()}
        write_text(self._note, json.dumps({"count": self.count, "shapes": self.shapes, "sizes": sizes}))
        self._kept_at = time.monotonic()
