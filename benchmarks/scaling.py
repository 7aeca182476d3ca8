"""One training on one GPU and on several of a host, by strategy, and whether a killed one goes on: a line for each.

    python benchmarks/scaling.py --results DIR --budget-s 540 --output scaling.json [--devices 2 4 8] [--rows NAME ...]

Rows are runs of stage `pretrain` on random tokens: 1.5B and 3B at 8,192 and 2,048 tokens, on one GPU and on so many
of --devices under ddp, fsdp2, zero2 and zero3, and a mixture of experts. Each GPU draws the same weights, so losses can
be compared: `loss` is the largest relative difference of a step's loss from the run on one GPU. `resume-fsdp2` kills a
rank after a checkpoint, `resume-zero3` the stage, and both start the run again; their `loss` is against the same run
unharmed. A row is written and printed once it is measured, and a failed one never stops the next.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from device import Item, Run

from effllm.results.training import Efficiency, LossCurve
from effllm.runtime.artifact import MANIFEST, Manifest, write_text
from effllm.runtime.stage import CHECKPOINT_MARKER, SCRATCH
from effllm.study.inheritance import read_study

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
BASE = Path(__file__).resolve().parents[1] / "config" / "single-gpu-shapes.yaml"
# As many runs as fit begin with what was never measured.
SHAPES: dict[str, dict[str, Any]] = {
    "1.5b-8k": {"like": "gqa-1.5b"},
    "3b-8k": {"like": "gqa-3b"},
    "1.5b-2k": {"like": "gqa-1.5b-2k"},
    "3b-2k": {"like": "gqa-3b", "sequence_length": 2048, "global_batch_size": 16, "micro_batch_size": 4},
    "moe-8k": {"like": "moe-0.5bx8"},
    "resume": {
        "like": "gqa-1.5b-2k",
        "max_steps": 40,
        "checkpoint_every_steps": 20,
        "deterministic": True,
        "architecture": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8},
    },
}
RESUMED = {"fsdp2": "rank", "zero3": "stage"}
# Of a row at most, and what must be left for one to begin.
LIMIT_S, LEAST_S = 120.0, 25.0
TRIAL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Row:
    """A run, what it is compared with, and what is killed of it on the way."""

    name: str
    shape: str
    strategy: str = "single"
    devices: int = 1
    reference: str | None = None
    killed: str | None = None


@dataclass
class Results:
    """What was measured so far, in `path` after each row."""

    path: Path
    began: float = field(default_factory=time.monotonic)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, row: dict[str, Any]) -> None:
        self.rows[name] = row
        write_text(self.path, json.dumps(self.rows, indent=1, sort_keys=True) + "\n")
        shown = " ".join(
            f"{key} {_short(value)}" for key, value in row.items() if key != "losses" and value is not None
        )
        print(f"[{time.monotonic() - self.began:6.1f} s] {name}: {shown}", flush=True)


def rows(devices: Sequence[int]) -> list[Row]:
    """All rows, the most valuable first."""
    found: list[Row] = []
    for shape in ("1.5b-8k", "resume", "3b-8k", "1.5b-2k", "3b-2k", "moe-8k"):
        if shape == "resume":
            for strategy, killed in RESUMED.items():
                whole = Row(f"whole-{strategy}", shape, strategy, devices[0])
                found += [whole, Row(f"resume-{strategy}", shape, strategy, devices[0], whole.name, killed)]
            continue
        one = Row(f"{shape}-one", shape)
        strategies = ("fsdp2", "ddp") if shape == "moe-8k" else STRATEGIES
        found += [one, *(Row(f"{shape}-{each}-x{n}", shape, each, n, one.name) for n in devices for each in strategies)]
    return found


def study_of(asked: Sequence[Row], steps: int, is_trial: bool) -> dict[str, Any]:
    """The study of single GPUs with these runs, all of whose losses are kept; a trial's are tiny."""
    study = read_study(BASE)
    known = study["pretraining"]
    # Some ids are frequent, so that losses fall.
    study["tokens"]["random"] |= {"distribution": "zipf"}
    runs = {}
    for row in asked:
        changes = dict(SHAPES[row.shape])
        run = json.loads(json.dumps(known[str(changes.pop("like"))])) | {"max_steps": steps, "log_every_steps": 1}
        architecture = run["architecture"] | changes.pop("architecture", {})
        parallel = {"strategy": row.strategy, "devices": row.devices}
        runs[row.name] = run | changes | {"architecture": architecture, "parallel": parallel}
        runs[row.name]["optimizer"] |= {"learning_rate": 1.0e-4, "minimum_learning_rate": 1.0e-5}
        # One global batch for all of them, of which each of the most devices has a part.
        most = max(each.devices for each in asked) * runs[row.name]["micro_batch_size"]
        runs[row.name]["global_batch_size"] = max(runs[row.name]["global_batch_size"], most)
        if is_trial:
            runs[row.name] |= {"sequence_length": 64, "max_steps": min(steps, 6)}
            runs[row.name]["architecture"] |= TRIAL | {"vocab_size": 512}
            if row.shape == "resume":
                runs[row.name] |= {"max_steps": 40, "checkpoint_every_steps": 10}
    if is_trial:
        study["tokens"]["random"] |= {"vocab_size": 512, "tokens": 200_000}
    # Nothing else of it is run.
    known |= runs
    return study


def measured(run: Run, row: Row, results: Results) -> dict[str, Any]:
    """Run a row, and what it gave."""
    started = time.monotonic()
    if row.killed:
        status, reason = _killed_and_resumed(run, row)
    else:
        run.all((f"pretrain/{row.name}",))
        outcome = run.record.get(f"pretrain/{row.name}", {"status": "not begun", "reason": "the budget is spent"})
        status, reason = outcome["status"], outcome["reason"]
    row_result: dict[str, Any] = {"status": status, "reason": reason, "wall_s": time.monotonic() - started}
    directory = run.results / "pretrain" / row.name
    if status != "done" or Manifest.read(directory / MANIFEST).status != "ok":
        return row_result
    efficiency = Efficiency.read(directory)
    row_result |= {
        "device": efficiency.device.name,
        "devices": efficiency.world_size,
        "step_s": efficiency.latency_s_per_iteration,
        "step_s_ci95": efficiency.latency_s_per_iteration_ci95,
        "tokens_per_s": efficiency.tokens_per_s,
        "mfu": efficiency.mfu,
        "resumed_at_step": efficiency.resumed_at_step,
    }
    if efficiency.telemetry is not None:
        keys = ("memory_device_peak_gb", "allocator_peak_gb", "power_avg_w", "util_nvml", "temperature_max_c")
        row_result |= {key: getattr(efficiency.telemetry, key) for key in keys}
    row_result["losses"] = losses = [point.loss for point in LossCurve.read(directory).curve]
    before = results.rows.get(row.reference or "", {})
    if before.get("losses"):
        pairs = zip(losses, before["losses"], strict=True)
        row_result["loss"] = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
    if before.get("tokens_per_s") and efficiency.tokens_per_s and not row.killed:
        row_result["speedup"] = efficiency.tokens_per_s / before["tokens_per_s"]
        row_result["efficiency"] = row_result["speedup"] / row.devices
    return row_result


def _killed_and_resumed(run: Run, row: Row) -> tuple[str, str | None]:
    """Start the run, have it killed after its first checkpoint, and start it again."""
    spec = run.results / SCRATCH / "pretrain" / f"{row.name}.spec.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    write_text(spec, json.dumps(run.graph.spec("pretrain", row.name), indent=1, sort_keys=True))
    argv = ["--spec", str(spec), "--output", str(run.results / "pretrain" / row.name)]
    for name, path in run.graph.parents("pretrain", row.name).items():
        argv += ["--input", f"{name}={path}"]
    scratch = run.results / SCRATCH / "pretrain" / row.name
    log = run.results / "logs" / "pretrain" / f"{row.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    killer = subprocess.Popen([sys.executable, __file__, "--kill", str(row.killed), str(scratch)])
    try:
        status, reason = run.start("pretrain", argv, log, time.monotonic() + min(LIMIT_S, run.left_s()))
    finally:
        killer.kill()
        killer.wait()
    log.rename(log.with_suffix(".killed.log"))
    if status != "failed":
        return "failed", f"the run that was to be killed was {status}: {reason}"
    return run.start("pretrain", argv, log, time.monotonic() + min(LIMIT_S, run.left_s()))


def kill(what: str, scratch: Path) -> None:
    """Once the run of this scratch has a whole checkpoint, kill its second rank, or the process of the stage."""
    while not list(scratch.glob(f"work/checkpoint-*/{CHECKPOINT_MARKER}")):
        time.sleep(0.01)
    ranks = [process for process in psutil.process_iter() if str(scratch / "work" / "job.json") in _words(process)]
    second = next(each for each in ranks if _rank(each) == "1")
    # A rank's parent is torchrun, and torchrun's the stage.
    victim = second if what == "rank" else second.parents()[1]
    victim.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _rank(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("scaling"))
    parser.add_argument("--budget-s", type=float, default=540.0)
    parser.add_argument("--output", type=Path, default=Path("scaling.json"))
    parser.add_argument("--devices", type=int, nargs="+", default=[2])
    parser.add_argument("--rows", nargs="+", default=[""], metavar="NAME", help="rows whose names begin so")
    parser.add_argument("--steps", type=int, default=9, help="of which three warm up")
    parser.add_argument("--kill", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kill:
        kill(arguments.kill[0], Path(arguments.kill[1]))
        return
    asked = [row for row in rows(arguments.devices) if row.name.startswith(tuple(arguments.rows))]
    arguments.results.mkdir(parents=True, exist_ok=True)
    # Asking for GPUs must not start CUDA here: stages are forked from this process.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    study = arguments.results.absolute() / "study.yaml"
    write_text(study, yaml.safe_dump(study_of(asked, arguments.steps, not torch.cuda.is_available())))
    plan = [Item(LEAST_S, LIMIT_S, stage="pretrain", id=row.name) for row in asked]
    results = Results(arguments.output)
    run = Run(study, plan, arguments.results.absolute(), arguments.budget_s, None)
    for row in asked:
        if run.left_s() < LEAST_S:
            results.add(row.name, {"status": "not begun", "reason": "the budget is spent"})
            continue
        try:
            results.add(row.name, measured(run, row, results))
        except Exception as error:
            results.add(row.name, {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:300]})


if __name__ == "__main__":
    main()
