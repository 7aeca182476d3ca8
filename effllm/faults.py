"""Errors of the machine, not of the program: a full disk, a missing right, too little memory; one sentence each."""

import errno
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "can't start new thread", "unable to allocate")


def fault_of_machine(error: BaseException, place: Path) -> str | None:
    """A sentence with the remedy if the machine is at fault, None for a defect of the program.

    place: the directory or file that was being written, named where the error names none.
    """
    number = getattr(error, "errno", None)
    where = getattr(error, "filename", None) or place
    # Libraries wrap the system's error in their own types, so the text is all that is common to them.
    text = str(error)
    if number in _FULL or "No space left on device" in text:
        return f"the file system of {place} is full ({text}): free some space and run again; finished nodes stay valid."
    if number == errno.EROFS or "Read-only file system" in text:
        return f"{where} lies on a read-only file system: mount it for writing, or run where results can be written."
    if number == errno.EFBIG or "File too large" in text:
        return f"{where}: a file grows past what this process may write: raise the limit (ulimit -f) and run again."
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(part in text.lower() for part in _NO_MEMORY):
        return (
            f"memory ran out while {place} was made: raise the limit of the process (ulimit -v, or the job's memory) "
            "and run again; finished nodes stay valid."
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{where}: too many open files: raise the limit (ulimit -n) and run again."
    if number in (errno.EACCES, errno.EPERM) and getattr(error, "filename", None):
        return f"{where}: {error.strerror}; give this user access and run again."  # type: ignore[attr-defined]
    if number in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP) and getattr(error, "filename", None):
        return f"{where}: {error.strerror}; move it out of the way, or choose another place."  # type: ignore[attr-defined]
    if number in (errno.EIO, errno.ESTALE):
        return f"{where}: {text}: the file system answers with errors; check it and run again."
    return None
