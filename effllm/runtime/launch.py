"""How the workflow starts a stage: one process of its own, so that memory, time and power belong to one cell.

The child dies with its launcher, gets the launcher's signals, and writes to the terminal's log file.
"""

import contextlib
import ctypes
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from effllm.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from effllm.runtime import gpu_lease, lifeline
from effllm.runtime.artifact import write_text
from effllm.runtime.clock import await_inputs
from effllm.runtime.faults import fault_of_machine
from effllm.runtime.stage import SCRATCH

if TYPE_CHECKING:
    from effllm.stages.stage import Stage

_PR_SET_PDEATHSIG = 1
# Opened here: it is called between a fork and the program's start, where a lock may be without its holder.
_LIBC = ctypes.CDLL(None)
_LAST_LINES = 15
_PROGRESS = b"progress: "
_NO_SHARE = gpu_lease.Share()


def name_interpreter() -> None:
    """Let Snakemake start scripts by a name on PATH where the interpreter's own path is not a word of the shell.

    Snakemake writes that path into a command without quotes, so that an environment below `My Documents` starts none.
    """
    if shlex.quote(sys.executable) != sys.executable:
        interpreter = Path(sys.executable)
        os.environ["PATH"] = os.pathsep.join([str(interpreter.parent), os.environ.get("PATH", "")])
        sys.executable = interpreter.name


def run_stage(
    stage: "Stage",
    *,
    spec: dict[str, Any],
    inputs: Mapping[str, str | Sequence[str]],
    manifest: str,
    log: str,
    threads: int,
    gpus: int = 0,
) -> None:
    """Run one stage to the end in a process of its own.

    `inputs` are paths by name (a list of paths for a name is passed as several); `manifest` is the artifact's
    manifest.json; `gpus` are those that it asks for by the bytes of its model, where it asks for more than the study
    says. Exits this process with the stage's code, after printing why, if the stage fails.
    """
    output = Path(manifest).parent
    scratch = output.parent.parent / SCRATCH / stage.name
    lists = {name: [paths] if isinstance(paths, str) else paths for name, paths in inputs.items()}
    # Files of a folder are more than a command line holds.
    files = {name: list(map(str, paths)) for name, paths in lists.items() if len(paths) > 1}
    spec_file, files_file = (scratch / f"{output.name}.{kind}.json" for kind in ("spec", "files"))
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lifeline.attach(scratch.parent)
        await_inputs(chain.from_iterable(lists.values()), scratch)
        write_text(spec_file, json.dumps(spec, indent=1, sort_keys=True))
        if files:
            write_text(files_file, json.dumps(files, indent=1))
    except (UserError, OSError) as error:
        sentence = error if isinstance(error, UserError) else fault_of_machine(error, scratch)
        if sentence is None:
            raise
        end_with(sentence, f"{stage.name} {output.name}", Path(log))
    argv = [sys.executable, "-m", "effllm.runtime.start", stage.module]
    argv += ["--spec", str(spec_file), "--output", str(output)]
    for name, paths in lists.items():
        argv += [part for path in paths if name not in files for part in ("--input", f"{name}={path}")]
    argv += ["--files", str(files_file)] if files else []
    environment = stage_environment(stage, threads)
    try:
        count = max(stage.devices(spec["config"]), gpus if stage.uses_device else 0)
        with gpu_lease.leased(count, f"{stage.name} {output.name}") as share:
            code = run_logged(argv, log=Path(log), environment=environment | share.environment(), share=share)
    except UserError as error:
        end_with(error, f"{stage.name} {output.name}", Path(log))
    except OSError as error:
        sentence = fault_of_machine(error, Path(log))
        if sentence is None:
            raise
        end_with(sentence, f"{stage.name} {output.name}", Path(log))
    if code:
        print(_explain(stage.name, output, Path(log), code), file=sys.stderr)
        sys.exit(code)


def end_with(sentence: object, what: str, log: Path) -> NoReturn:
    """End this process as a user's error does: the sentence on stderr and, where it can be written, in the log."""
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"error: {sentence}\n")
    print(f"{what}: {sentence}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def stage_environment(stage: "Stage", threads: int) -> dict[str, str]:
    """The environment of a stage's process: thread counts, bytecode kept, and the hub only where the stage needs it."""
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
        environment[name] = str(threads)
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["PYTHONUNBUFFERED"] = "1"
    # Each stage would compile all that it imports once more, which takes longer than most of the embedded study's do.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if not stage.network:
        environment["HF_HUB_OFFLINE"] = "1"
        # A token is worth nothing there, and jobs get the environment of the host that submits them.
        environment.pop("HF_TOKEN", None)
    return environment


def run_logged(
    argv: Sequence[str], *, log: Path, environment: dict[str, str], share: gpu_lease.Share = _NO_SHARE
) -> int:
    """Run `argv` with both output streams in `log`, on the cores of its share; return its exit code.

    Lines that begin with `progress: ` are relayed to this process's stderr; SIGINT and SIGTERM go to the child. A log
    that cannot be written any more (a full disk) does not end the child, which may write elsewhere: it is said once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb", buffering=0) as stream:
        child = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=functools.partial(_prepare, os.getpid(), share.cores),
            # The stage keeps the lock of the run, and those of its GPUs, to its own end.
            pass_fds=(*lifeline.held(), *share.locks),
        )

        def forward(signum: int, _frame: FrameType | None) -> None:
            child.send_signal(signum)

        previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            assert child.stdout is not None
            is_logged = True
            for line in child.stdout:
                try:
                    if is_logged:
                        stream.write(line)
                except OSError as error:
                    is_logged = False
                    print(f"{log}: {error.strerror}; going on without the log", file=sys.stderr, flush=True)
                if line.startswith(_PROGRESS):
                    print(line.removeprefix(_PROGRESS).decode(errors="replace").rstrip(), file=sys.stderr, flush=True)
            return child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _prepare(parent: int, cores: frozenset[int]) -> None:
    die_with_parent(parent)
    if cores:
        os.sched_setaffinity(0, cores)


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process with the thread that started it, which must be the main one of process `parent`.

    Called between fork and start.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before the kernel was told.
        os.kill(os.getpid(), signal.SIGKILL)


def _explain(stage: str, output: Path, log: Path, code: int) -> str:
    lines = log.read_text(errors="replace").splitlines()
    if code in (EXIT_USER_ERROR, EXIT_INTERRUPTED):
        errors = [line for line in lines if line.startswith("error: ")]
        return f"{stage} {output.name}: {errors[-1].removeprefix('error: ') if errors else f'see {log}'}"
    if code < 0:
        name = signal.Signals(-code).name
        # What C++ throws where memory or threads cannot be had ends in an abort.
        faults = (fault_of_machine(RuntimeError(line), output) for line in reversed(lines[-_LAST_LINES:]))
        if name == "SIGABRT" and (fault := next(filter(None, faults), None)):
            return f"{stage} {output.name}: {fault} Log: {log}"
        hint = " (out of memory, if nobody sent it)" if name == "SIGKILL" else ""
        return f"{stage} {output.name}: ended by {name}{hint}; run again to go on where it stopped. Log: {log}"
    tail = "\n".join(lines[-_LAST_LINES:])
    return f"{stage} {output.name}: failed with code {code}. The end of {log}:\n{tail}"
