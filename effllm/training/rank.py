"""One of the ranks of a training run, as torchrun starts it: `python -m effllm.training.rank JOB.json`."""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from effllm.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, CellFailure, Interrupted, UserError
from effllm.runtime import lifeline
from effllm.runtime.artifact import write_text
from effllm.runtime.launch import die_with_parent
from effllm.runtime.start import libraries_imported
from effllm.training.ranks import read_job
from effllm.training.run import TRAINED, run_rank, write_failure


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
    job = read_job(Path(sys.argv[1]))
    rank = int(os.environ["RANK"])
    if rank:
        log = job.records / "ranks" / f"rank-{rank}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb", buffering=0) as stream:
            for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
                os.dup2(stream.fileno(), descriptor)
    module = importlib.import_module(job.module)
    libraries_imported()
    try:
        lifeline.hold()
        setup = module.setup(job)
        trainer = run_rank(job, setup)
        if setup.keeps_weights:
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
