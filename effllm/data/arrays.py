"""Arrays of numbers as files that are whole or not there."""

import os
from pathlib import Path

import numpy as np

from effllm.data.writing import named_errors


def save(path: Path, array: np.ndarray) -> None:
    """Write `array` under its name only once all of it is on the disk; `load` reads it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with named_errors(temporary), open(temporary, "wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path) -> np.ndarray:
    """The array in `path`, mapped and not read."""
    # A map of no bytes is an error.
    return np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None)
