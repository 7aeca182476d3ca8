"""Table 9 of the embedded study from nothing: wall time, peak memory, and where the time goes.

    python benchmarks/cold_run.py [--output figures.json]

Runs the workflow under profiles/local in a new directory. Memory is the sum of the proportional set sizes of
Snakemake and everything it starts, sampled every 0.5 s: pages that processes share count once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
PERIOD_S = 0.5


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = run(Path(directory))
    print(f"{'wall time':24} {figures['wall_s']:8.1f} s on {figures['cores']} cores")
    print(f"{'peak memory':24} {figures['peak_memory_gb']:8.2f} GB")
    for stage, (nodes, seconds) in figures["stages"].items():
        print(f"  {stage:22} {seconds:8.1f} s in {nodes} nodes")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


def run(directory: Path) -> dict[str, Any]:
    """Figures of one run in an empty `directory`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(directory), "--profile", str(REPOSITORY / "profiles" / "local")]
    started = time.monotonic()
    with open(directory / "snakemake.log", "w") as log:
        process = subprocess.Popen([*command, "results/table9.csv"], stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(PERIOD_S)
    if process.returncode:
        sys.exit((directory / "snakemake.log").read_text())
    stages: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for path in (directory / "results").glob("[!.]*/*/provenance.json"):
        stages[path.parts[-3]][0] += 1
        stages[path.parts[-3]][1] += json.loads(path.read_text())["wall_s"]
    return {
        "cores": psutil.cpu_count(),
        "peak_memory_gb": peak / 1e9,
        "stages": {name: tuple(figures) for name, figures in sorted(stages.items(), key=lambda item: -item[1][1])},
        "wall_s": time.monotonic() - started,
    }


def tree_memory(pid: int) -> int:
    """Bytes of a process and all its descendants."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    main()
