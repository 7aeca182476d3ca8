"""Digests of the study's local files: a file is read once, and again only after something was done to it.

The records lie in `results/.scratch/digests/`, one for each file. A record holds for the size, the inode and both times
of the file that was read. The kernel sets the time of change (ctime) at every write and at every change of the other
time, so that a file which was replaced or rewritten under its old time of modification is read again too.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from effllm.runtime.artifact import digest_file, write_text

_DIRECTORY = "digests"
# Within the coarsest tick of a file system two writes may leave the same times.
_SETTLED_S = 2.0
# From here on it takes longer than people wait without a word.
_TOLD_B = 1 << 30


def sha256_of(path: Path, scratch: Path) -> str:
    """The sha256 (hex) of a local file, from the record in `scratch` (of the results) if it still holds."""
    identity = _identity(path)
    try:
        record = json.loads(_record(path, scratch).read_text())
        if record["identity"] == identity and isinstance(record["sha256"], str):
            return record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        # There is none, or it was damaged: it is made anew.
        pass
    if identity[0] >= _TOLD_B:
        print(f"reading {path} ({identity[0] / 1e9:.1f} GB) once, for its digest", file=sys.stderr)
    return read_sha256(path, scratch)


def read_sha256(path: Path, scratch: Path) -> str:
    """The sha256 (hex) of a local file, read now and recorded in `scratch`."""
    before = _identity(path)
    sha256 = digest_file(path).sha256
    if _identity(path) == before and abs(time.time() - path.stat().st_ctime) > _SETTLED_S:
        record = _record(path, scratch)
        # Results of which this user may only read: then every look at them costs the reading again.
        with contextlib.suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            write_text(record, json.dumps({"path": str(path), "identity": before, "sha256": sha256}) + "\n")
    return sha256


def _identity(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _record(path: Path, scratch: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    return scratch / _DIRECTORY / f"{name}.json"
