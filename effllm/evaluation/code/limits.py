"""What an isolated process may use; read by both of them, and in force before anything else of theirs runs."""

import os
import resource


def enforce(seconds, memory_bytes, processes, file_bytes, user):
    """Limit this process and what it starts; `user` is the id to become where root started it, or None."""
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    # After the change of user: root's processes are not counted.
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))


def private_streams():
    """(reader, writer) over stdin and stdout, which are then closed to everything else, as stderr is."""
    reader = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")
    writer = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    return reader, writer
