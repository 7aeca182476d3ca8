"""What a Slurm job adds to its stage: the same node built by the bare program, by a local run, and as a job.

    python benchmarks/slurm_jobs.py [--repeats 5] [--output figures.json]

Needs root and Debian's packages: it starts the test cluster (`tests/slurm/cluster`) on this machine and stops it. The
node is the token stream of the embedded study, built in seconds. The three ways are interleaved. A job's own time is
what Slurm's accounting says, in whole seconds; a run's is its wall time, in which the plugin waits 5 s before it
submits and then looks at the job after 2, 14, 36 s and so on.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study

REPOSITORY = Path(__file__).resolve().parents[1]
CLUSTER = str(REPOSITORY / "tests" / "slurm" / "cluster")
NODE = ("tokens", "python-docs")


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"bare_s": [], "local_run_s": [], "slurm_run_s": [], "slurm_job_s": []}
    with tempfile.TemporaryDirectory(prefix="effllm-slurm-") as name:
        root = Path(name)
        root.chmod(0o755)
        state, work = root / "cluster", root / "work"
        run([CLUSTER, "install"])
        figures = {"cluster_start_s": run([CLUSTER, "start", str(state)], capture=False)}
        try:
            compare(work, arguments.repeats, seconds)
        finally:
            run([CLUSTER, "stop", str(state)])
    figures |= {key: statistics.median(values) for key, values in seconds.items()}
    figures["overhead_s"] = figures["slurm_job_s"] - figures["bare_s"]
    for key, value in figures.items():
        print(f"{key:18} {value:8.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures | {"all": seconds}, indent=1) + "\n")


def compare(work: Path, repeats: int, seconds: dict[str, list[float]]) -> None:
    """Build the node in the three ways, in turn."""
    graph = Graph(load_study(REPOSITORY / "config" / "tiny.yaml"))
    manifest, parents = graph.manifest(*NODE), graph.parents(*NODE)
    spec = work / "spec.json"
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    here = ["--directory", str(work), "--config", f"study={REPOSITORY / 'config' / 'tiny.yaml'}"]
    local = [*snakemake, "--profile", str(REPOSITORY / "profiles" / "local"), *here, "--"]
    pace = ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5"]
    site = ["--default-resources", "slurm_partition=superchips", "slurm_account=lab"]
    slurm = [*snakemake, "--profile", str(REPOSITORY / "profiles" / "gh200"), *site, *pace, *here, "--"]
    bare = [sys.executable, "-m", STAGES[NODE[0]].module, "--spec", str(spec), "--output", str(Path(manifest).parent)]
    bare += [part for key, path in parents.items() for part in ("--input", f"{key}={path}")]
    run([*local, *map(str, parents.values())])
    spec.write_text(json.dumps(graph.spec(*NODE)))
    for _ in range(repeats):
        for key, command in (
            ("bare_s", bare),
            ("local_run_s", [*local, manifest]),
            ("slurm_run_s", [*slurm, manifest]),
        ):
            shutil.rmtree(work / "results" / NODE[0], ignore_errors=True)
            seconds[key].append(run(command, cwd=work if key == "bare_s" else REPOSITORY))
        accounting = ["sacct", "--allocations", "--noheader", "--format=ElapsedRaw"]
        elapsed = subprocess.run(accounting, check=True, capture_output=True, text=True).stdout.split()
        seconds["slurm_job_s"].append(float(elapsed[-1]))


def run(command: list[str], cwd: Path = REPOSITORY, capture: bool = True) -> float:
    """Wall time of a command in seconds; exits if it fails. Daemons keep their output open: not to be captured."""
    started = time.monotonic()
    result = subprocess.run(command, capture_output=capture, text=True, cwd=cwd)
    elapsed = time.monotonic() - started
    if result.returncode:
        sys.exit(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
    return elapsed


if __name__ == "__main__":
    main()
