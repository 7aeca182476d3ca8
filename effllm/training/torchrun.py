"""How the ranks of a run are started: torchrun on one node, or one torchrun a node in a step of a Slurm job."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from effllm.errors import UserError
from effllm.runtime.launch import die_with_parent
from effllm.training.settings import Parallel

# Of 10,000 ports, by the job's number: two jobs that share a node rarely meet.
_FIRST_PORT, _PORTS = 20_000, 10_000


def command(parallel: Parallel, threads: int, log_directory: Path, word: Path) -> list[str]:
    """What starts `parallel.world_size` ranks of the program whose arguments follow; `threads` are a rank's own.

    Over several nodes the ranks meet on the first one, and a rank that ends with an error ends the step. torchrun keeps
    its own files in `log_directory`; unasked, it leaves a folder of them in /tmp for every run. The file `word` is
    written where a signal ended a rank: {rank: signal}. UserError outside of a Slurm job.
    """
    torchrun = [sys.executable, "-m", "effllm.runtime.start", "effllm.training.launcher", str(word)]
    torchrun += [f"--nproc-per-node={parallel.devices}", f"--log-dir={log_directory}"]
    if parallel.nodes == 1:
        return [*torchrun, "--standalone"]
    job, first_node = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURMD_NODENAME")
    if job is None or first_node is None or not shutil.which("srun"):
        raise UserError(
            f"parallel.nodes: {parallel.nodes} nodes need Slurm, and this is no Slurm job; use a Slurm profile."
        )
    # All of it is said: the workflow's executor takes the job's own defaults out of the environment.
    step = [
        "srun",
        f"--nodes={parallel.nodes}",
        f"--ntasks={parallel.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={threads * parallel.devices}",
        f"--gpus-per-node={parallel.devices}",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
    ]
    rendezvous = [
        f"--nnodes={parallel.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={job}",
        f"--rdzv-endpoint={first_node}:{_FIRST_PORT + int(job) % _PORTS}",
    ]
    return [*step, *torchrun, *rendezvous]


def run(argv: Sequence[str], environment: dict[str, str]) -> int:
    """Run `argv` to its end; its exit code. SIGTERM goes to the ranks, which save a checkpoint and end.

    torchrun itself would give them 30 seconds for it, so it does not hear the signal.
    """
    environment = environment | {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"}
    with subprocess.Popen(argv, env=environment, preexec_fn=partial(_prepare, os.getpid())) as launcher:

        def forward(number: int, _frame: FrameType | None) -> None:
            for process in psutil.Process(launcher.pid).children(recursive=True):
                # Whoever ignores the signal, as the launchers do, is left alone by it.
                process.send_signal(number)

        previous = signal.signal(signal.SIGTERM, forward)
        try:
            return launcher.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)


def _prepare(parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
