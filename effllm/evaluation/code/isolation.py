"""How generated programs are kept from the network, the files and the processes of this machine.

By bubblewrap (Debian: bubblewrap; Fedora, Arch, Alpine: bubblewrap): no network, no home, a file system that holds the
interpreter read-only and an empty /tmp, process ids of its own, and the limits of `Limits`. Or by a command that the
user names, which then has to do as much: it gets the interpreter's command line as its last arguments.
"""

import functools
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

BUBBLEWRAP = "bubblewrap"
_HERE = Path(__file__).parent
_NOBODY = 65534
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")


@dataclass(frozen=True)
class Limits:
    """What one isolated process may use: seconds of wall time and of processor time each, bytes, processes, bytes."""

    seconds: int = 10
    memory_bytes: int = 2**30
    processes: int = 32
    file_bytes: int = 2**24


def command(isolation: str | list[str], script: str, limits: Limits) -> list[str]:
    """The command line that runs `script` (candidate or checker) isolated, its messages on stdin and stdout."""
    # Only root can become another user, and only within bubblewrap is that known to be safe to try.
    as_nobody = isolation == BUBBLEWRAP and os.geteuid() == 0
    settings = {**asdict(limits), "user": _NOBODY if as_nobody else None}
    text = "\n".join((_HERE / f"{part}.py").read_text() for part in ("values", "limits", script))
    text = text.replace("LIMITS = {}", f"LIMITS = {settings!r}", 1)
    python = [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-I", "-S", "-c", text]
    return [*(bubblewrap(as_nobody) if isolation == BUBBLEWRAP else isolation), *python]


@functools.cache
def bubblewrap(as_nobody: bool) -> list[str]:
    """The beginning of a command line that bubblewrap isolates; `as_nobody`: as a user without rights."""
    # Root keeps the two rights that it takes to become nobody, whose processes the kernel counts.
    rights = (
        "--unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try "
        "--cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID"
        if as_nobody
        else "--unshare-all"
    )
    files = []
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            files += ["--symlink", str(path.readlink()), str(path)]
        elif path.exists():
            files += ["--ro-bind", str(path), str(path)]
    base = os.path.realpath(sys.base_prefix)
    if not base.startswith("/usr"):
        # By itself bubblewrap lets only the user that starts it through the folders on the way.
        for folder in reversed(Path(base).parents[:-1]):
            files += ["--perms", "0755", "--dir", str(folder)]
        files += ["--ro-bind", base, base]
    # /tmp holds 16 MiB, and nothing else can be written.
    space = f"--size {2**24} --perms 1777 --tmpfs /tmp --chdir /tmp --remount-ro / --"
    lives = "--die-with-parent --new-session --clearenv"
    return ["bwrap", *rights.split(), *lives.split(), *files, *["--proc", "/proc", "--dev", "/dev"], *space.split()]
