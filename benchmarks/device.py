"""Run the most valuable parts of a study on a machine that is lent for minutes, without Snakemake.

    python benchmarks/device.py --plan benchmarks/device_plan.yaml --results DIR --budget-s 540 --export OUT.tar.gz

It takes the plan from the top: nodes of the study (their parents first) and scripts of this directory, each a process
of its own with a limit of time; stages are forked from this one, which imports their libraries once. An artifact is
there as soon as its stage ends; what failed or ran out of time is recorded, and the next goes on. What does not fit
into the rest of the budget is left for a later call over the same DIR, which skips what is done. After each item the
small files are packed into OUT, from which `device_tables.py` makes the study's tables.

Of several GPUs, each may have a call of its own at the same time: with CUDA_VISIBLE_DEVICES, processor cores (taskset),
a plan and a DIR of its own.

A plan is YAML: `study`, and `items`, each {stage, id} or {script, arguments}, with `expected_s` (begin only if so much
time is left) and `limit_s` (end it after that).
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from effllm.errors import UserError
from effllm.runtime.artifact import MANIFEST, Manifest, write_text
from effllm.runtime.launch import stage_environment
from effllm.runtime.stage import SCRATCH
from effllm.runtime.stage import main as stage_main
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study

RECORD = "device.json"
EXPORT_LIMIT_BYTES = 15 << 20
# Larger files are weights, checkpoints and long series of samples.
EXPORTED_FILE_BYTES = 1 << 20
# Between the end of an item and the end of the call: packing, and a process that takes its time to die.
RESERVE_S = 10.0
FINAL = ("done", "failed", "timeout")
Outcome = tuple[str, str | None]


@dataclass(frozen=True)
class Item:
    """One entry of the plan."""

    expected_s: float
    limit_s: float
    stage: str | None = None
    id: str | None = None
    script: str | None = None
    name: str | None = None
    arguments: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The name under which its outcome is recorded."""
        return f"{self.stage}/{self.id}" if self.stage else f"script/{self.name or Path(str(self.script)).stem}"


class Run:
    """One call: the study's graph, the recorded outcomes, and the time that is left."""

    def __init__(self, study: Path, plan: list[Item], results: Path, budget_s: float, export: Path | None):
        self.graph = Graph(load_study(study), str(results))
        self.plan, self.results, self.export = plan, results, export
        self.end = time.monotonic() + budget_s
        self.results.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = read_record(results)
        named = {(item.stage, str(item.id)) for item in plan if item.stage}
        self.start = preload({stage for node in named for stage, _ in (node, *self._ancestors(*node))})

    def left_s(self) -> float:
        """Seconds until the last item must have ended."""
        return self.end - RESERVE_S - time.monotonic()

    def all(self, only: tuple[str, ...]) -> None:
        """Every item that is not finished and fits, in the plan's order; `only` those whose keys begin so."""
        items = [item for item in self.plan if item.key.startswith(only)]
        for item in items:
            if self.record.get(item.key, {}).get("status") in FINAL:
                continue
            if self.left_s() < item.expected_s:
                self._say(f"{item.key}: left for a later call, {self.left_s():.0f} s are too few")
                continue
            self._one(item)
        finished = [item for item in items if self.record.get(item.key, {}).get("status") in FINAL]
        self._say(f"{len(finished)} of {len(items)} items are finished")
        self._pack()

    def _one(self, item: Item) -> None:
        started = time.monotonic()
        # What was cut by the end of the call, and not by its own limit, is tried again.
        is_cut = self.left_s() < item.limit_s
        deadline = started + min(item.limit_s, self.left_s())
        self._say(f"{item.key}: begins, {self.left_s():.0f} s left")
        try:
            if item.stage:
                status, reason = self._node(item.stage, str(item.id), deadline)
            else:
                status, reason = self._script(item, deadline)
        except UserError as error:
            status, reason = "failed", str(error)
        if status == "timeout" and is_cut:
            status = "cut"
        seconds = time.monotonic() - started
        self.record[item.key] = {"status": status, "reason": reason, "seconds": round(seconds, 1)}
        write_text(self.results / RECORD, json.dumps(self.record, indent=1, sort_keys=True) + "\n")
        self._say(f"{item.key}: {status} after {seconds:.0f} s{f' ({reason})' if reason else ''}")
        self._prune()
        self._pack()

    def _node(self, stage: str, id: str, deadline: float) -> Outcome:
        """Build a node's missing parents and the node; its status, and why if it is not done."""
        for parent_stage, parent_id in self._parents(stage, id):
            if not self._stands(parent_stage, parent_id):
                status, reason = self._node(parent_stage, parent_id, deadline)
                if status != "done":
                    return status, f"{parent_stage}/{parent_id}: {reason}"
        if self._stands(stage, id):
            return "done", None
        output = self.results / stage / id
        spec = self.results / SCRATCH / stage / f"{id}.spec.json"
        spec.parent.mkdir(parents=True, exist_ok=True)
        write_text(spec, json.dumps(self.graph.spec(stage, id), indent=1, sort_keys=True))
        argv = ["--spec", str(spec), "--output", str(output)]
        for name, paths in self.graph.parents(stage, id).items():
            for path in [paths] if isinstance(paths, str) else paths:
                argv += ["--input", f"{name}={path}"]
        status, reason = self.start(stage, argv, self._log(stage, id), deadline)
        if status != "done":
            shutil.rmtree(self.results / SCRATCH / stage / id, ignore_errors=True)
            return status, reason
        manifest = Manifest.read(output / MANIFEST)
        return "done", None if manifest.status == "ok" else f"{manifest.status}: {manifest.reason}"

    def _script(self, item: Item, deadline: float) -> Outcome:
        name = item.key.partition("/")[2]
        output = self.results / "scripts" / f"{name}.json"
        output.parent.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).parent / str(item.script)
        argv = [sys.executable, str(script), *item.arguments, "--output", str(output)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        return run_program(argv, self._log("scripts", name), environment, deadline)

    def _stands(self, stage: str, id: str) -> bool:
        """Whether the artifact is there, of this study, and whole: an earlier call's archive has small files only."""
        directory = self.results / stage / id
        if not (directory / MANIFEST).is_file():
            return False
        manifest = Manifest.read(directory / MANIFEST)
        is_whole = all((directory / name).is_file() for name in manifest.payload)
        return is_whole and manifest.spec == self.graph.spec(stage, id)

    def _log(self, stage: str, id: str) -> Path:
        path = self.results / "logs" / stage / f"{id}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _prune(self) -> None:
        """Delete weights that no item of the plan will read again: disks of such machines are small."""
        needed: set[tuple[str, str]] = set()
        for item in self.plan:
            if item.stage and self.record.get(item.key, {}).get("status") not in FINAL:
                needed |= self._ancestors(item.stage, str(item.id))
        for model in self.results.glob("*/*/model"):
            if model.parts[-3:-1] not in needed:
                shutil.rmtree(model)

    def _ancestors(self, stage: str, id: str) -> set[tuple[str, str]]:
        parents = self._parents(stage, id)
        return {*parents, *(ancestor for parent in parents for ancestor in self._ancestors(*parent))}

    def _parents(self, stage: str, id: str) -> list[tuple[str, str]]:
        """Stage and id of the artifacts that a node is built from."""
        lists = [[paths] if isinstance(paths, str) else paths for paths in self.graph.parents(stage, id).values()]
        return [Path(path).parts[-3:-1] for paths in lists for path in paths if path.endswith(MANIFEST)]

    def _pack(self) -> None:
        if self.export:
            pack(self.results, self.export)

    def _say(self, text: str) -> None:
        print(f"[{self.left_s():5.0f} s left] {text}", flush=True)


def preload(stages: set[str]) -> Callable[[str, list[str], Path, float], Outcome]:
    """How stages are started: forked from this process, which has imported their libraries once.

    On a bare machine the imports take as long as a cell is measured. Without them each stage is a program of its own:
    where a library started CUDA when it was imported, which no fork survives.
    """
    os.environ.update(stage_environment(STAGES["pretrain"], len(os.sched_getaffinity(0))))
    # Asking whether there is a GPU must not start CUDA here, and a fork takes one thread along: leave none behind.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    # Arrow's allocator has a thread that survives forks.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
    for stage in sorted(stages):
        importlib.import_module(STAGES[stage].module)
    code = _wait(_fork(_try_cuda, Path(os.devnull)), time.monotonic() + 60)
    return _forked_stage if code == 0 else _program_stage


def _try_cuda() -> None:
    import torch

    from effllm.telemetry import device_info

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda").item()
        device_info("cuda:0")


def _forked_stage(stage: str, argv: list[str], log: Path, deadline: float) -> Outcome:
    module = importlib.import_module(STAGES[stage].module)

    def work() -> None:
        sys.argv = [str(module.__file__), *argv]
        stage_main(STAGES[stage], module.build, argv)

    return _outcome(_wait(_fork(work, log), deadline), log)


def _program_stage(stage: str, argv: list[str], log: Path, deadline: float) -> Outcome:
    environment = stage_environment(STAGES[stage], len(os.sched_getaffinity(0)))
    return run_program([sys.executable, "-m", STAGES[stage].module, *argv], log, environment, deadline)


def run_program(argv: list[str], log: Path, environment: dict[str, str], deadline: float) -> Outcome:
    """Run to the end or to the deadline, with everything it started; its output goes to `log`."""
    with open(log, "wb") as stream:
        child = subprocess.Popen(argv, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    return _outcome(_wait(child.pid, deadline), log)


def _fork(work: Callable[[], None], log: Path) -> int:
    """The process id of a child in a session of its own that does `work`, its output in `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout.reconfigure(line_buffering=True)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, deadline: float) -> int | None:
    """A child's exit code, or None where the deadline came first; whatever it has started ends with it."""
    code = None
    while code is None and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
    return code


def _outcome(code: int | None, log: Path) -> Outcome:
    if code is None:
        return "timeout", f"ended after its time was up; last line: {_last_line(log)}"
    return ("done", None) if code == 0 else ("failed", f"code {code}: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "none"


def machine(commit: str | None) -> str:
    """What this call ran on, as JSON."""
    packages: dict[str, str] = {}
    for item in importlib.metadata.distributions():
        # The first one on the path is the one that is imported.
        packages.setdefault(item.metadata["Name"], item.version)
    devices = (
        subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True) if shutil.which("nvidia-smi") else None
    )
    content = {
        "argv": sys.argv,
        "commit": commit,
        "cpus": len(os.sched_getaffinity(0)),
        "nvidia_smi": devices.stdout.splitlines() if devices else None,
        "packages": packages,
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read_record(results: Path) -> dict[str, Any]:
    """What earlier calls have recorded, by item."""
    path = results / RECORD
    return json.loads(path.read_text()) if path.exists() else {}


def pack(results: Path, export: Path) -> None:
    """Every small file below `results` in one archive, manifests first; the largest are left out if it gets too big."""
    files = [path for path in results.rglob("*") if path.is_file() and SCRATCH not in path.parts]
    files = [path for path in files if path.stat().st_size <= EXPORTED_FILE_BYTES]
    files.sort(key=lambda path: path.stat().st_size)
    while True:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path in files:
                archive.add(path, arcname=str(Path("results") / path.relative_to(results)))
        if buffer.tell() <= EXPORT_LIMIT_BYTES:
            break
        files = files[: len(files) * 9 // 10]
    export.parent.mkdir(parents=True, exist_ok=True)
    temporary = export.with_name(f".{export.name}")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(export)


def read_plan(path: Path) -> tuple[Path, list[Item]]:
    """The plan's study and items."""
    content = yaml.safe_load(path.read_text())
    return Path(content["study"]), [Item(**entry) for entry in content["items"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, required=True)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--commit", help="of the code, where it travels without its repository")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="KEY", help="items whose key begins so, such as script/ or pretrain/"
    )
    parser.add_argument("--retry", nargs="+", default=[], metavar="KEY", help="try items whose key begins so again")
    arguments = parser.parse_args()
    study, plan = read_plan(arguments.plan)
    run = Run(study, plan, arguments.results, arguments.budget_s, arguments.export)
    run.record = {key: outcome for key, outcome in run.record.items() if not key.startswith(tuple(arguments.retry))}
    write_text(arguments.results / f"machine-{time.strftime('%H%M%S')}.json", machine(arguments.commit))
    run.all(tuple(arguments.only))


if __name__ == "__main__":
    main()
