"""What `effllm recommend` costs on a large table: processor time of the whole command, start-up included.

    python benchmarks/recommend.py [--rows 500] [--repeats 5] [--output figures.json]

The table is made up: models of many sizes in several precisions whose figures follow from size and precision with some
noise, so that dozens of rows are on the frontier, all within one scope. Nothing of it is a measurement of a model.
"""

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = (
    *("model", "precision", "average_performance", "average_performance_low", "average_performance_high", "MCR"),
    *("latency_ms", "latency_ms_low", "latency_ms_high", "memory_peak_GB", "energy_J_per_token"),
    *("device", "threads", "software", "warnings", "status", "reason", "not_measured"),
)
PRECISIONS = {"bfloat16": 1.0, "float16": 1.0, "int8": 0.55, "int4": 0.32, "int3": 0.26}
QUESTION = ("--max", "memory_peak_GB=40", "--max", "latency_ms=900", "--max", "energy_J_per_token=4")
QUESTION += ("--min", "average_performance=0.3", "--quality-loss", "3")


def write_table(path: Path, rows: int) -> None:
    """A Table 9 of so many rows, the same at every call."""
    noise = random.Random(0)
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for number in range(rows):
            precision, share = list(PRECISIONS.items())[number % len(PRECISIONS)]
            size = 0.5 * 1.05 ** (number // len(PRECISIONS))
            score = 0.75 - 0.25 / size**0.4 - 0.03 * (1 - share) + noise.gauss(0, 0.01)
            latency = 50 + 40 * size**0.8 * share**0.5 * noise.lognormvariate(0, 0.2)
            memory = 1 + 2 * size * share * noise.lognormvariate(0, 0.1)
            energy = 0.2 + 0.3 * size**0.9 * share**0.4 * noise.lognormvariate(0, 0.2)
            figures = (
                score,
                score - 0.02,
                score + 0.02,
                1 / share,
                latency,
                0.98 * latency,
                1.02 * latency,
                memory,
                energy,
            )
            cells = [f"{figure:.6g}" for figure in figures]
            writer.writerow([f"M{number:03}", precision, *cells, "a GPU", 4, "torch", "", "ok", "", ""])


def cpu_seconds(command: list[str]) -> float:
    """Processor time of a command and its children, in s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3, 4):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        table = Path(directory) / "table9.csv"
        write_table(table, arguments.rows)
        recommend = [sys.executable, "-m", "effllm.cli", "recommend", str(table)]
        for name, command in (
            ("python -c pass", [sys.executable, "-c", "pass"]),
            ("no limit", recommend),
            ("four limits", [*recommend, *QUESTION]),
            ("four limits, --prefer, --json", [*recommend, *QUESTION, "--prefer", "latency_ms", "--json"]),
        ):
            seconds = [cpu_seconds(command) for _ in range(arguments.repeats)]
            figures[name] = {"cpu_s": statistics.median(seconds), "all_cpu_s": seconds}
            print(f"{name:32} {statistics.median(seconds):.2f} s (least {min(seconds):.2f})")
    if arguments.output:
        arguments.output.write_text(json.dumps({"rows": arguments.rows, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
