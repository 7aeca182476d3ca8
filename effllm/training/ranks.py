"""Several ranks of one training run: torchrun starts them, and one that fails ends them all.

The stage's own process holds the artifact's lease, waits, and publishes. A rank is

    torchrun ... -m effllm.training.ranks JOB.json

It logs to `records/ranks/rank-<n>.log`, the first one to the stage's log.
"""

import importlib
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from effllm.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, CellFailure, Interrupted, UserError
from effllm.runtime import lifeline
from effllm.runtime.artifact import Artifact, write_text
from effllm.runtime.launch import die_with_parent
from effllm.runtime.stage import Job
from effllm.runtime.start import libraries_imported
from effllm.stages import STAGES
from effllm.study.training import Parallel
from effllm.training import torchrun
from effllm.training.run import TRAINED, run_rank, write_failure

_LAST_LINES = 15


def run_ranks(job: Job, parallel: Parallel) -> None:
    """Run the ranks to their end; they leave the trained model in the scratch.

    Raises CellFailure where a rank found the cell failed, UserError where a rank found a mistake of the user,
    Interrupted where the ranks were told to stop, and RuntimeError with the ends of their logs otherwise.
    """
    _check_devices(parallel)
    for old in job.scratch.glob("failure-*.json"):
        old.unlink()
    job_file = job.scratch / "job.json"
    write_text(job_file, json.dumps(_plain(job), indent=1, sort_keys=True))
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    start = torchrun.command(parallel, torch.get_num_threads(), job.scratch / "torchrun")
    code = torchrun.run([*start, "-m", "effllm.runtime.start", "effllm.training.ranks", str(job_file)], environment)
    for path in sorted(job.scratch.glob("failure-*.json")):
        verdict = json.loads(path.read_text())
        if verdict["status"] == "user":
            raise UserError(verdict["reason"])
        if verdict["status"] == "interrupted":
            raise Interrupted(verdict["reason"])
        raise CellFailure(verdict["status"], verdict["reason"])
    if code:
        raise RuntimeError(f"the ranks ended with code {code}\n{_ends_of_logs(job.records / 'ranks')}")


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
    content = {key: value for key, value in asdict(job).items() if key in ("stage", "id", "spec")}
    content["inputs"] = {name: str(artifact.directory / "manifest.json") for name, artifact in job.inputs.items()}
    content["files"] = {name: str(path) for name, path in job.files.items()}
    return content | {key: str(getattr(job, key)) for key in ("output", "records", "scratch")}


def _job(path: Path) -> Job:
    content = json.loads(path.read_text())
    return Job(
        stage=content["stage"],
        id=content["id"],
        spec=content["spec"],
        inputs={name: Artifact.open(manifest) for name, manifest in content["inputs"].items()},
        files={name: Path(file) for name, file in content["files"].items()},
        **{key: Path(content[key]) for key in ("output", "records", "scratch")},
    )


def _hard_exit() -> None:
    """End this process without the interpreter's exit: threads of gloo and DeepSpeed abort it there now and then."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    """One rank."""
    die_with_parent(os.getppid())
    # torchrun ignores the signal, and would pass that on.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    job = _job(Path(sys.argv[1]))
    rank = int(os.environ["RANK"])
    if rank:
        log = job.records / "ranks" / f"rank-{rank}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb", buffering=0) as stream:
            for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
                os.dup2(stream.fileno(), descriptor)
    module = importlib.import_module(STAGES[job.stage].module)
    libraries_imported()
    try:
        lifeline.hold()
        trainer = run_rank(job, module.setup(job))
        trainer.save_model(str(job.scratch / TRAINED))
        torch.distributed.barrier()
        _hard_exit()
    except CellFailure as failure:
        write_failure(job, rank, failure)
        sys.exit(1)
    except UserError as error:
        write_text(job.scratch / f"failure-{rank}.json", json.dumps({"status": "user", "reason": str(error)}))
        sys.exit(EXIT_USER_ERROR)
    except Interrupted as error:
        write_text(job.scratch / f"failure-{rank}.json", json.dumps({"status": "interrupted", "reason": str(error)}))
        sys.exit(EXIT_INTERRUPTED)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
