"""Errors of writing that say which file they are about."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
