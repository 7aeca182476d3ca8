"""What a dry run and a plan of the paper's whole study cost, and how a dry run grows with the number of nodes.

    python benchmarks/dry_run.py [--repeats 3] [--sizes 10 40 160] [--output figures.json]

Beside the study itself, dry runs of Table 9 with so many models, and of an empty workflow with the same nodes and
edges, interleaved in one run. The time per node is the slope between two sizes, in seconds of CPU: it must not grow.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml
from noop_run import write_empty_workflow

from effllm.planning.nodes import nodes_behind, targets_of
from effllm.stages.graph import Graph
from effllm.study import load_study
from effllm.study.inheritance import read_study

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEMAKE = [sys.executable, "-m", "snakemake"]
OURS = [*SNAKEMAKE, "--snakefile", str(REPOSITORY / "Snakefile"), "--profile", str(REPOSITORY / "profiles" / "gh200")]
PAPER = REPOSITORY / "config" / "paper.yaml"


@dataclass(frozen=True)
class Run:
    """Seconds of wall time and of CPU, and the peak of resident memory in bytes."""

    wall_s: float
    cpu_s: float
    peak_b: int


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 40, 160])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        commands, nodes = commands_of(scratch, arguments.sizes)
        runs: dict[str, list[Run]] = {key: [] for key in commands}
        for _ in range(arguments.repeats):
            for key, command in commands.items():
                runs[key].append(measure(command))
    figures = {
        key: {
            "nodes": nodes.get(key),
            "wall_s": statistics.median(run.wall_s for run in measured),
            "cpu_s": statistics.median(run.cpu_s for run in measured),
            "peak_mb": max(run.peak_b for run in measured) / 1e6,
        }
        for key, measured in runs.items()
    }
    for key, row in figures.items():
        count = f"{row['nodes']} nodes" if row["nodes"] else ""
        print(f"{key:14}{count:>12}  {row['wall_s']:7.2f} s  {row['cpu_s']:7.2f} s CPU  {row['peak_mb']:7.0f} MB")
    slopes = {}
    for kind in ("models", "empty"):
        for small, large in pairwise(f"{kind} {size}" for size in arguments.sizes):
            grown_s = figures[large]["cpu_s"] - figures[small]["cpu_s"]
            slopes[f"{small} to {large}"] = 1e3 * grown_s / (figures[large]["nodes"] - figures[small]["nodes"])
    for key, value in slopes.items():
        print(f"{key:24} {value:6.3f} ms CPU per node")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures | {"ms_per_node": slopes}, indent=1) + "\n")


def commands_of(scratch: Path, sizes: list[int]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Command lines by name, and how many nodes each is about."""
    paper = Graph(load_study(PAPER))
    commands = {
        "paper": [*OURS, "--directory", str(scratch / "paper"), "--config", f"study={PAPER}", "-n", "--", "all"],
        "effllm plan": [
            sys.executable,
            "-m",
            "effllm.cli",
            "plan",
            "--study",
            str(PAPER),
            "--assume-mfu",
            "0.4",
            "--device",
            "NVIDIA GH200 120GB",
            "--gpus",
            "48",
            "--results",
            str(scratch / "none"),
        ],
    }
    nodes = dict.fromkeys(commands, len(nodes_behind(paper, targets_of(paper))))
    for size in sizes:
        study = scratch / f"models-{size}.yaml"
        study.write_text(yaml.safe_dump(with_models(size)))
        directory = ["--directory", str(scratch / f"models-{size}"), "--config", f"study={study}"]
        commands[f"models {size}"] = [*OURS, *directory, "-n", "--", "results/table9.csv"]
        empty = scratch / f"empty-{size}"
        count = write_empty_workflow(empty, study)
        snakefile = ["--directory", str(empty), "--snakefile", str(empty / "Snakefile"), "--cores", "2"]
        commands[f"empty {size}"] = [*SNAKEMAKE, *snakefile, "-n", "--", "results/table9.csv"]
        nodes |= {f"models {size}": count, f"empty {size}": count}
    return commands, nodes


def with_models(count: int) -> dict:
    """The paper's Table 9 with so many models, copies of its own."""
    study = json.loads(json.dumps(read_study(PAPER)))
    table = study["tables"]["table9"]
    originals = [study["models"][id] for id in table["models"]]
    study["models"] = {f"model-{n}": copy.deepcopy(originals[n % len(originals)]) for n in range(count)}
    study["tables"] = {"table9": table | {"models": list(study["models"])}}
    study.pop("finetuning", None)
    return study


def measure(command: list[str]) -> Run:
    """Run a command to its end; exits if it fails."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        elapsed = time.monotonic() - started
        # A plan that names nodes which cannot fit ends with 1.
        if child.returncode not in (0, 1) or (child.returncode and "snakemake" in command):
            output.seek(0)
            sys.exit(output.read())
    return Run(elapsed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


if __name__ == "__main__":
    main()
