"""One holder at a time, on one host and on two, whatever the file system's locks are worth."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from effllm.errors import UserError
from effllm.runtime import lease as module
from effllm.runtime.lease import Lease, holder_of, lease


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims that are renewed and grow stale in fractions of a second."""
    monkeypatch.setattr(module, "RENEW_S", 0.05)
    monkeypatch.setattr(module, "STALE_S", 0.5)
    monkeypatch.setattr(module, "_SETTLE_S", 0.05)


def _of_host(directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Lease:
    """A lease as another host of the cluster would take it, whose locks this one does not see."""
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "uname", lambda: type("uname", (), {"nodename": name}))
        patch.setattr(module, "_boot_id", lambda: name)
        made = Lease(directory, "the artifact")
    made._lock = lambda wait: True  # type: ignore[method-assign]
    return made


def test_a_second_holder_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    with lease(tmp_path / "lease", "the artifact"):
        second = Lease(tmp_path / "lease", "the artifact")
        with pytest.raises(UserError, match=f"the artifact is in use by process {os.getpid()} on "):
            second.acquire(wait=False)
    second.acquire(wait=False)
    second.release()
    assert holder_of(tmp_path / "lease") is None


def test_a_killed_holder_leaves_nothing_to_unlock(tmp_path: Path) -> None:
    program = f"""
        import time
        from pathlib import Path
        from effllm.runtime.lease import Lease
        Lease(Path({str(tmp_path / "lease")!r}), "x").acquire()
        print("held", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    assert holder_of(tmp_path / "lease").pid == process.pid
    process.kill()
    process.wait()
    started = time.monotonic()
    with lease(tmp_path / "lease", "x"):
        assert holder_of(tmp_path / "lease").pid == os.getpid()
    assert time.monotonic() - started < 5


def test_a_holder_that_leaves_its_working_directory_keeps_its_lease(tmp_path: Path) -> None:
    """As Snakemake does at its end, between its last job and the end of its process."""
    (tmp_path / "elsewhere").mkdir()
    program = """
        import os, time
        from pathlib import Path
        from effllm.runtime import lease
        lease.RENEW_S = 0.05
        lease.Lease(Path("lease"), "x").acquire()
        os.chdir("elsewhere")
        time.sleep(0.5)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True)
    assert result.returncode == 0, result.stderr


def test_another_host_waits_while_the_claim_is_renewed(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (_of_host(tmp_path / "lease", name, monkeypatch) for name in ("one", "two"))
    first.acquire()
    with pytest.raises(UserError, match=r"is in use by process .* on one"):
        second.acquire(wait=False)
    waiting = threading.Thread(target=second.acquire)
    waiting.start()
    time.sleep(1.0)
    assert waiting.is_alive()
    first.release()
    waiting.join(timeout=10)
    assert holder_of(tmp_path / "lease").host == "two"
    second.release()


def test_a_claim_that_is_not_renewed_is_taken_over_once(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = _of_host(tmp_path / "lease", "dead", monkeypatch)
    monkeypatch.setattr(dead, "_renew", lambda: None)
    dead.acquire()
    heirs = [_of_host(tmp_path / "lease", name, monkeypatch) for name in ("one", "two")]
    held: list[str] = []
    most = [0]

    def build(heir: Lease) -> None:
        heir.acquire()
        held.append(heir._claim.host)
        most[0] = max(most[0], len(held))
        time.sleep(0.3)
        heir.require_held()
        held.remove(heir._claim.host)
        heir.release()

    threads = [threading.Thread(target=build, args=(heir,)) for heir in heirs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert most[0] == 1 and not held
    with pytest.raises(UserError, match="was taken over by nobody known"):
        dead.require_held()


def test_a_claim_of_a_slurm_job_that_has_ended_is_void_at_once(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    dead = _of_host(tmp_path / "lease", "dead", monkeypatch)
    dead.acquire()
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    heir = _of_host(tmp_path / "lease", "heir", monkeypatch)
    states = {"17": False}
    monkeypatch.setattr(module, "has_ended", states.__getitem__)
    with pytest.raises(UserError, match=r"in use by .*, Slurm job 17"):
        heir.acquire(wait=False)
    states["17"] = True
    monkeypatch.setattr(dead, "_claim_file", tmp_path / "elsewhere")
    dead._ended.set()
    heir.acquire(wait=False)
    assert holder_of(tmp_path / "lease").slurm_job == "18"
    heir.release()


def test_a_holder_that_was_suspended_until_another_took_over_ends_itself(tmp_path: Path) -> None:
    program = f"""
        import time
        from pathlib import Path
        from effllm.runtime import lease as module
        module.RENEW_S = 0.1
        module.Lease(Path({str(tmp_path / "lease")!r}), "the artifact").acquire()
        print("held", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    process.send_signal(signal.SIGSTOP)
    claim = tmp_path / "lease" / "claim"
    claim.write_text(claim.read_text().replace(str(process.pid), "1").replace('"token": "', '"token": "x'))
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert b"error: the artifact was taken over by process 1 on " in errors


def test_file_systems_without_locks_rely_on_the_claim(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with lease(tmp_path / "lease", "the artifact"), pytest.raises(UserError, match="is in use by"):
        Lease(tmp_path / "lease", "the artifact").acquire(wait=False)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b'{"pid": 1}'])
def test_a_damaged_claim_is_taken_over_after_it_was_watched(content: bytes, quick: None, tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "claim").write_bytes(content)
    assert str(holder_of(tmp_path / "lease")) == "a process that is not known"
    with lease(tmp_path / "lease", "the artifact") as held:
        held.require_held()
