"""The only right to write something, held by one process at a time, on one host or on any of a cluster.

A lock of the kernel ends with its process, so that a SIGKILL leaves nothing to unlock; but some network file systems
keep it for each host alone, or have none. So the holder also leaves a claim beside it: a file that says who holds the
lease, and whose time of modification a thread renews. A claim without a living holder is void:

- one of this host, when the kernel's lock is free: its process has ended;
- one of a Slurm job that Slurm says has ended;
- one that was not renewed for `STALE_S` while it was watched. Two hosts' clocks are never compared.

A holder whose claim was taken over, because it had been suspended for that long, ends itself before it writes again.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path

from effllm.errors import UserError
from effllm.runtime.slurm import has_ended

log = logging.getLogger(__name__)

RENEW_S = 10.0
STALE_S = 120.0
# Two hosts may find the same claim void; the one that wrote last has it, and the other sees that by then.
_SETTLE_S = 2.0
_CLAIM = "claim"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Claim:
    """Who holds a lease. `boot` tells a host's lives apart; `token` is the claim's own."""

    token: str
    pid: int
    host: str
    boot: str
    slurm_job: str | None

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}" if self.host else "a process that is not known"


_UNKNOWN = Claim(token="", pid=0, host="", boot="", slurm_job=None)


class Lease:
    """Holds `directory`, a folder of the lease's own, between `acquire` and `release`."""

    def __init__(self, directory: Path, what: str):
        self.what = what
        # Absolute: Snakemake leaves its working directory before its process ends, and the thread still renews.
        self._directory = directory.absolute()
        self._claim_file = self._directory / _CLAIM
        self._claim = Claim(
            uuid.uuid4().hex, os.getpid(), os.uname().nodename, _boot_id(), os.environ.get("SLURM_JOB_ID")
        )
        self._stream: TextIOWrapper | None = None
        self._ended = threading.Event()

    def acquire(self, wait: bool = True) -> None:
        """Take the lease, after its holder if there is one; with `wait=False`, `UserError` naming a living one."""
        self._directory.mkdir(parents=True, exist_ok=True)
        is_local = self._lock(wait)
        self._enter_claim(is_local, wait)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def release(self) -> None:
        """Give the lease back."""
        self._ended.set()
        if self._read() == self._claim:
            self._claim_file.unlink(missing_ok=True)
        if self._stream:
            self._stream.close()

    def require_held(self) -> None:
        """Raise `UserError` if another process has taken the lease over: what this one made must not be published."""
        holder = self._read()
        if holder != self._claim:
            raise UserError(
                f"{self.what} was taken over by {holder or 'nobody known'} while this process was suspended: nothing "
                "is to be done, the other one builds it."
            )

    def _lock(self, wait: bool) -> bool:
        """Take the kernel's lock; whether there is one on this file system."""
        self._stream = open(self._directory / "lock", "a")  # noqa: SIM115 (closed by release)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = str(self._read() or "another process")
            if not wait:
                raise UserError(f"{self.what} is in use by {holder}: wait for it to end, or stop it.") from None
            log.info("waiting: %s is being built by %s", self.what, holder)
            fcntl.flock(self._stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        return True

    def _enter_claim(self, is_local: bool, wait: bool) -> None:
        draft = self._directory / f"{_CLAIM}.{self._claim.token}"
        try:
            draft.write_text(json.dumps(asdict(self._claim)))
            while True:
                with contextlib.suppress(FileExistsError):
                    # A link is made by one of two hosts only, on network file systems too.
                    os.link(draft, self._claim_file)
                    return
                holder = self._read()
                if holder is None:
                    continue
                if is_local and (holder.host, holder.boot) == (self._claim.host, self._claim.boot):
                    draft.replace(self._claim_file)
                    return
                self._watch(holder, wait)
                second = draft.with_suffix(".second")
                os.link(draft, second)
                second.replace(self._claim_file)
                time.sleep(_SETTLE_S)
                if self._read() == self._claim:
                    return
        finally:
            draft.unlink(missing_ok=True)

    def _watch(self, holder: Claim, wait: bool) -> None:
        """Return once the claim of `holder`, on another host, is void or gone."""
        log.info("%s is claimed by %s: watching whether it lives", self.what, holder)
        seen, since = self._renewed_at(), time.monotonic()
        while self._read() == holder:
            job = holder.slurm_job
            ended = has_ended(job) if job and job != self._claim.slurm_job else None
            if ended or time.monotonic() - since > STALE_S:
                return
            renewed = self._renewed_at()
            if renewed != seen or ended is False:
                if not wait:
                    raise UserError(f"{self.what} is in use by {holder}: wait for it to end, or stop it.")
                seen, since = renewed, time.monotonic()
            time.sleep(RENEW_S / 2)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                if self._read() == self._claim:
                    os.utime(self._claim_file)
                    continue
            except OSError as error:
                # A file system that is away for a moment is no reason to give up.
                log.warning("the claim of %s could not be renewed: %s", self.what, error)
                continue
            if not self._ended.is_set():
                print(f"error: {self.what} was taken over by {self._read()}: ending.", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    def _read(self) -> Claim | None:
        return holder_of(self._directory)

    def _renewed_at(self) -> int | None:
        try:
            # Opening a file makes a network file system ask its server; a stat alone may come from a cache.
            with open(self._claim_file) as stream:
                return os.fstat(stream.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None


@contextlib.contextmanager
def lease(directory: Path, what: str) -> Iterator[Lease]:
    """Hold the lease on `what` for the length of a block, after any holder before."""
    held = Lease(directory, what)
    held.acquire()
    try:
        yield held
    finally:
        held.release()


def holder_of(directory: Path) -> Claim | None:
    """Who has claimed the lease of `directory`, living or not; nobody known if the claim cannot be read."""
    try:
        return Claim(**json.loads((directory / _CLAIM).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # A crash of the machine left it empty, say. It is watched as a living one's is.
        return _UNKNOWN


def living_holder(directory: Path) -> Claim | None:
    """Who holds the lease of `directory` now, as far as can be told without waiting; clocks are taken to agree."""
    claim = holder_of(directory)
    if claim is None:
        return None
    try:
        with open(directory / "lock") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return claim
    except OSError:
        pass
    else:
        if (claim.host, claim.boot) == (os.uname().nodename, _boot_id()):
            return None
    ended = has_ended(claim.slurm_job) if claim.slurm_job else None
    if ended is not None:
        return None if ended else claim
    try:
        return claim if time.time() - (directory / _CLAIM).stat().st_mtime < STALE_S else None
    except FileNotFoundError:
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
