"""Several ranks of one training run: torchrun starts them, and one that fails ends them all.

The stage's own process holds the artifact's lease, waits, and publishes. A rank is

    torchrun ... -m effllm.training.rank JOB.json

It logs to `records/ranks/rank-<n>.log`, the first one to the stage's log.
"""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from effllm.errors import CellFailure, Interrupted, UserError
from effllm.runtime.artifact import Artifact, write_text
from effllm.runtime.stage import Job
from effllm.training import torchrun
from effllm.training.settings import Parallel

_LAST_LINES = 15


def run_ranks(job: Job, parallel: Parallel) -> None:
    """Run the ranks to their end; they leave the trained model in the scratch.

    Raises CellFailure where a rank found the cell failed, UserError where a rank found a mistake of the user or was
    killed, Interrupted where the ranks were told to stop, and RuntimeError with the ends of their logs otherwise.
    """
    _check_devices(parallel)
    word = job.scratch / "ended-by-signal.json"
    for old in (*job.scratch.glob("failure-*.json"), *job.scratch.glob(word.name)):
        old.unlink()
    job_file = job.scratch / "job.json"
    write_text(job_file, json.dumps(_plain(job), indent=1, sort_keys=True))
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    start = torchrun.command(parallel, torch.get_num_threads(), job.scratch / "torchrun", word)
    code = torchrun.run([*start, "-m", "effllm.runtime.start", "effllm.training.rank", str(job_file)], environment)
    for path in sorted(job.scratch.glob("failure-*.json")):
        verdict = json.loads(path.read_text())
        if verdict["status"] == "user":
            raise UserError(verdict["reason"])
        if verdict["status"] == "interrupted":
            raise Interrupted(verdict["reason"])
        raise CellFailure(verdict["status"], verdict["reason"])
    if code:
        signals = json.loads(word.read_text()) if word.exists() else {}
        ended = {rank: signal.Signals(number).name for rank, number in signals.items()}
        for rank, name in ended.items():
            if name == "SIGKILL":
                raise UserError(
                    f"rank {rank} of {parallel.world_size} was ended by SIGKILL (out of memory, if nobody sent it): "
                    "run again to go on where it stopped, with more memory for the job if it has happened before."
                )
        how = "".join(f", rank {rank} by {name}" for rank, name in ended.items())
        raise RuntimeError(f"the ranks ended with code {code}{how}\n{_ends_of_logs(job.records / 'ranks')}")


def _check_devices(parallel: Parallel) -> None:
    available = torch.cuda.device_count()
    if torch.cuda.is_available() and parallel.devices > available:
        raise UserError(
            f"parallel.devices: {parallel.devices} GPUs are wanted and this job sees {available}; lower the number, or "
            "give the job more."
        )


def _ends_of_logs(directory: Path) -> str:
    ends = []
    for path in sorted(directory.glob("rank-*.log")):
        lines = path.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        ends.append("\n".join([f"the end of {path.name}:", *lines]))
    return "\n".join(ends)


def _plain(job: Job) -> dict[str, Any]:
    content = {key: value for key, value in asdict(job).items() if key in ("stage", "module", "id", "spec")}
    content["inputs"] = {name: str(artifact.directory / "manifest.json") for name, artifact in job.inputs.items()}
    content["files"] = {name: str(path) for name, path in job.files.items()}
    return content | {key: str(getattr(job, key)) for key in ("output", "records", "scratch")}


def read_job(path: Path) -> Job:
    """The job that a rank is part of, from the file that `run_ranks` has written."""
    content = json.loads(path.read_text())
    return Job(
        stage=content["stage"],
        module=content["module"],
        id=content["id"],
        spec=content["spec"],
        inputs={name: Artifact.open(manifest) for name, manifest in content["inputs"].items()},
        files={name: Path(file) for name, file in content["files"].items()},
        **{key: Path(content[key]) for key in ("output", "records", "scratch")},
    )
