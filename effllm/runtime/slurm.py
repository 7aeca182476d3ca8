"""What Slurm says about jobs: which of this workflow's are alive, and whether one has ended."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from effllm.errors import UserError

_TIMEOUT_S = 60
_PERIOD_S = 10.0
_FIELDS = "%i|%T|%Z|%k"
_RULE, _WILDCARDS = "rule_", "_wildcards_"


@dataclass(frozen=True)
class QueuedJob:
    """A job in Slurm's queue that builds a node: its number, state (PENDING, RUNNING, ...) and the node's name."""

    number: str
    state: str
    node: str

    def __str__(self) -> str:
        return f"{self.number} ({self.node}, {self.state})"


def require_slurm() -> None:
    """Raise `UserError` where jobs cannot be submitted: Snakemake's plugin would wait for an answer for ever."""
    missing = [program for program in ("sbatch", "squeue", "scancel") if not shutil.which(program)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} cannot be found on this host, so no job can be submitted to Slurm: run on a "
            "login node of the cluster, or on this machine with --profile profiles/local."
        )


def jobs_of(directory: Path) -> list[QueuedJob]:
    """Jobs of the workflow in `directory` that Slurm has not ended, whoever submitted them; `UserError` if it is mute.

    The plugin names a job's node in its comment and submits it from the workflow's directory.
    """
    answer = _squeue(f"--format={_FIELDS}")
    if answer.returncode:
        raise UserError(
            f"squeue fails ({answer.stderr.strip()}), so it is unknown whether jobs of an earlier run still write to "
            f"{directory}: run again when the controller answers."
        )
    jobs = []
    for line in answer.stdout.splitlines():
        number, state, where, comment = line.split("|", 3)
        if comment.startswith(_RULE) and where and os.path.realpath(where) == os.path.realpath(directory):
            rule, _, wildcards = comment.removeprefix(_RULE).partition(_WILDCARDS)
            jobs.append(QueuedJob(number, state, f"{rule} {wildcards}".strip()))
    return jobs


def await_jobs_of(directory: Path) -> None:
    """Wait until no job of an earlier run of the workflow in `directory` is alive, naming those waited for.

    A run that was killed leaves its jobs in Slurm, where they go on and publish what they build. Submitting their
    nodes again would build them twice.
    """
    announced: list[QueuedJob] = []
    while jobs := jobs_of(directory):
        if jobs != announced:
            print(
                f"waiting for {len(jobs)} job{'s' * (len(jobs) > 1)} of an earlier run in this directory, which Slurm "
                f"still has: {', '.join(map(str, jobs))}. To start over instead: scancel "
                f"{' '.join(job.number for job in jobs)}",
                file=sys.stderr,
                flush=True,
            )
            announced = jobs
        time.sleep(_PERIOD_S)


def has_ended(number: str) -> bool | None:
    """Whether a Slurm job has ended; None where Slurm does not say."""
    if not shutil.which("squeue"):
        return None
    answer = _squeue("--format=%T", f"--jobs={number}")
    if answer.returncode:
        # A job that left the controller's memory is an invalid number to it.
        return True if "Invalid job id" in answer.stderr else None
    return not answer.stdout.strip()


def _squeue(*options: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 1, "", f"no answer within {_TIMEOUT_S} s")
