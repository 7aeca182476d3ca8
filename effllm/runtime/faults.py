"""Errors of the machine, not of the program: a full disk, a missing right, too little memory; one sentence each."""

import errno
import os
import resource
from pathlib import Path

from effllm.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "bad_alloc",
    "failed to map segment",
)
_NO_THREAD = ("can't start new thread", "Resource temporarily unavailable")
# Importing torch and what the stages of training use takes 2.2 GB of addresses, little of it in memory.
_LEAST_ADDRESSES_B = 4 << 30
_LONGEST_TEXT = 200


def fault_of_machine(error: BaseException, place: Path) -> str | None:
    """A sentence with the remedy if the machine is at fault, None for a defect of the program.

    place: the directory or file that was being written, named where the error names none.
    """
    number = getattr(error, "errno", None)
    where = getattr(error, "filename", None) or place
    # Libraries wrap the system's error in their own types, so the text is all that is common to them.
    text = " ".join(str(error).split())
    if number in _FULL or "No space left on device" in text:
        return (
            f"the file system of {place} is full ({text[:_LONGEST_TEXT]}): free some space and run again; finished "
            "nodes stay valid."
        )
    if number == errno.EROFS or "Read-only file system" in text:
        return f"{where} lies on a read-only file system: mount it for writing, or run where results can be written."
    if number == errno.EFBIG or "File too large" in text:
        return f"{where}: a file grows past what this process may write: raise the limit (ulimit -f) and run again."
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(part in text.lower() for part in _NO_MEMORY):
        return (
            f"memory ran out while {place} was made: raise the limit of the process (ulimit -v, or the job's memory) "
            "and run again; finished nodes stay valid."
        )
    if any(part in text for part in _NO_THREAD):
        return (
            f"no more threads or processes can be started for {place}: raise the limits (ulimit -u, ulimit -v, the "
            "cgroup's pids.max) and run again; finished nodes stay valid."
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{where}: too many open files: raise the limit (ulimit -n) and run again."
    if isinstance(error, OSError) and error.filename:
        if number in (errno.EACCES, errno.EPERM):
            return f"{where}: {error.strerror}; give this user access and run again."
        if number in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return f"{where}: {error.strerror}; move it out of the way, or choose another place."
    if number in (errno.EIO, errno.ESTALE):
        return f"{where}: {text[:_LONGEST_TEXT]}: the file system answers with errors; check it and run again."
    return None


def require_address_space() -> None:
    """Raise UserError under a `ulimit -v` that the libraries cannot be imported in: some crash there, others hang."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _LEAST_ADDRESSES_B:
        raise UserError(
            f"this process may address {limit >> 20} MiB (ulimit -v), and importing the libraries takes up to "
            f"{_LEAST_ADDRESSES_B >> 20}: raise the limit, or bound the memory of the job instead."
        )


def require_place(file: Path) -> None:
    """Raise UserError if `file` is a directory, or something else lies where a directory above it belongs."""
    if file.is_dir():
        raise UserError(f"{file} is a directory where a file belongs: move it away.")
    _nearest_directory(file.parent)


def require_writable(directory: Path) -> None:
    """Raise UserError unless files can be written in `directory`, which is made later if it is not there."""
    nearest = _nearest_directory(directory)
    if not os.access(nearest, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
        why = "lies on a read-only file system" if is_read_only else "cannot be written by this user"
        raise UserError(
            f"{nearest.absolute()} {why}, and {directory} is written in a run: make it writable, or run elsewhere."
        )


def _nearest_directory(path: Path) -> Path:
    """`path`, or what is there of it."""
    present = path
    while not os.path.lexists(present) and present != present.parent:
        present = present.parent
    if not present.exists():
        target = present.readlink()
        raise UserError(f"{present} is a link to {target}, which does not exist: make that, or delete the link.")
    if not present.is_dir():
        raise UserError(f"{present} is a file where a directory belongs: move it away.")
    return present
