"""What starting a stage costs: `python -m effllm.runtime.start MODULE` with and without its care for the collector.

    python benchmarks/start.py [--rounds 5] [--output figures.json]

Both print the stage's help and end, which is everything that a stage does but its work. Rounds alternate; the figures
are medians of CPU and wall time, and their ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from effllm.stages import STAGES

MEASURED = ("pretrain", "evaluate", "quantize", "profile")
# The program as it would be if it never spoke to the collector.
PLAIN = "import gc, runpy, sys; gc.freeze = int; del sys.argv[0]; runpy.run_module(sys.argv[0], None, '__main__', True)"
WAYS = {"started": ["-m", "effllm.runtime.start"], "plain": ["-c", PLAIN]}
SILENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(prefix: list[str], module: str) -> tuple[float, float]:
    """Seconds of CPU and of the clock from start to end."""
    before, began = os.times(), time.perf_counter()
    command = [sys.executable, *prefix, module, "--help"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **SILENT})
    after = os.times()
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    return cpu_s, time.perf_counter() - began


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    figures = {}
    for stage in MEASURED:
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        # The first round fills the page cache.
        for number in range(arguments.rounds + 1):
            for way, prefix in WAYS.items():
                figure = start(prefix, STAGES[stage].module)
                if number:
                    seconds[way].append(figure)
        medians = {
            way: [statistics.median(column) for column in zip(*taken, strict=True)] for way, taken in seconds.items()
        }
        ratio = medians["started"][0] / medians["plain"][0]
        figures[stage] = {way: {"cpu_s": cpu_s, "wall_s": wall_s} for way, (cpu_s, wall_s) in medians.items()}
        figures[stage]["cpu_ratio"] = ratio
        print(
            f"{stage:10} {medians['started'][0]:.2f} s of CPU against {medians['plain'][0]:.2f} s: {ratio:.2f}x",
            flush=True,
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
