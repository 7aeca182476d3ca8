"""What the workflow adds to Snakemake: a run with nothing to do, and a dry run of the paper's Table 9.

    python benchmarks/noop_run.py --finished DIRECTORY [--repeats 5] [--output figures.json]

`--finished` is a directory in which Table 9 of the embedded study has been built. The baseline is an empty workflow
with the same number of nodes and the same edges, built and run again. Both sides are interleaved in one run; the
figure is the ratio of medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

from effllm.stages.graph import Graph
from effllm.study import load_study

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEMAKE = [sys.executable, "-m", "snakemake"]
OURS = [*SNAKEMAKE, "--snakefile", str(REPOSITORY / "Snakefile")]


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    local, paper = str(REPOSITORY / "profiles" / "local"), str(REPOSITORY / "profiles" / "gh200")
    with tempfile.TemporaryDirectory() as name:
        empty, scratch = Path(name) / "empty", Path(name) / "dry"
        nodes = write_empty_workflow(empty)
        baseline = [*SNAKEMAKE, "--directory", str(empty), "--snakefile", str(empty / "Snakefile"), "--cores", "2"]
        run([*baseline, "results/table9.csv"])
        commands = {
            "empty_noop_s": [*baseline, "results/table9.csv"],
            "noop_s": [*OURS, "--directory", str(arguments.finished), "--profile", local, "results/table9.csv"],
            "paper_dry_run_s": [*OURS, "--directory", str(scratch), "--profile", paper, "-n", "results/table9.csv"],
        }
        seconds: dict[str, list[float]] = {key: [] for key in commands}
        for _ in range(arguments.repeats):
            for key, command in commands.items():
                output, elapsed = run(command)
                if "noop" in key and "Nothing to be done" not in output:
                    sys.exit(f"{key}: something was done:\n{output}")
                seconds[key].append(elapsed)
    figures = {key: statistics.median(values) for key, values in seconds.items()}
    figures |= {"nodes": nodes, "noop_ratio": figures["noop_s"] / figures["empty_noop_s"]}
    for key, value in figures.items():
        print(f"{key:20} {value:8.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures | {"all": seconds}, indent=1) + "\n")


def run(command: list[str]) -> tuple[str, float]:
    """Output of a command and its wall time in seconds; exits if it fails."""
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    elapsed = time.monotonic() - started
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return result.stdout + result.stderr, elapsed


def write_empty_workflow(directory: Path, study: Path = REPOSITORY / "config" / "tiny.yaml") -> int:
    """A Snakefile whose jobs touch the manifests of a study's Table 9 from the same inputs; the number of jobs."""
    graph = Graph(load_study(study), "results")
    edges: dict[str, list[str]] = {"results/table9.csv": [*chain(*graph.table_parents("table9").values())]}
    pending = list(edges["results/table9.csv"])
    while pending:
        path = pending.pop()
        if path not in edges:
            edges[path] = list(graph.parents(*path.split("/")[1:3]).values())
            pending += edges[path]
    directory.mkdir()
    (directory / "edges.json").write_text(json.dumps(edges))
    (directory / "Snakefile").write_text(
        "import json\n"
        "EDGES = json.load(open(workflow.basedir + '/edges.json'))\n"
        "rule node:\n"
        "    input: lambda wildcards: EDGES['results/' + wildcards.name]\n"
        "    output: touch('results/{name}')\n"
        "    wildcard_constraints: name='.+'\n"
    )
    return len(edges)


if __name__ == "__main__":
    main()
