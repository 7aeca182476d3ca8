"""What `precisions.py` measured as a Table 9, of which `effllm crossover` says where each precision pays.

    python benchmarks/precisions_table.py DIR/precisions.csv --output DIR/table9.csv
    effllm crossover DIR/table9.csv --csv > DIR/crossover.csv

The table's own workload is one sequence by CUDA graphs; `batch8`, `batch64` and `generate` stand beside it where they
were measured. Memory is the peak of tensors in each, which a static cache holds from the start to the end.
"""

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OWN = ("graph", "1")
SOURCE = {"energy_source": "nvml: counter energy_j", "energy_scope": "gpu", "AMU_scope": "tensors"}
# Of a measured row, in a workload's columns.
FIGURES = {
    "latency_ms": "ms_generation",
    "IT_tokens_per_s": "tokens_per_s",
    "energy_J_per_token": "J_token",
    "AEC_W": "power_W",
    "AMU_GB": "peak_GB",
    "memory_peak_GB": "peak_GB",
}
REST = (
    "average_performance", "MCR", "weight_bytes", "bits", "device", "kernel", *SOURCE, "status", "reason",
    "not_measured",
)  # fmt: skip


def workload(row: Mapping[str, str]) -> str:
    """The prefix of a row's columns; empty for the table's own workload."""
    way, batch = row["way"], row["batch"]
    if (way, batch) == OWN:
        return ""
    name = f"batch{batch}" if way == "graph" else way if batch == "1" else f"{way}{batch}"
    return f"{name}_"


def table_of(rows: list[dict[str, str]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the table, in the order of the sizes and precisions as they come."""
    prefixes = list(dict.fromkeys(workload(row) for row in rows if row["way"]))
    columns = ["model", "precision"]
    for prefix in sorted(prefixes):
        columns += [f"{prefix}{name}" for name in FIGURES] + ([f"{prefix}status"] if prefix else [])
    sizes = list(dict.fromkeys(row["shape"] for row in rows))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: sizes.index(row["shape"])):
        cells = found.setdefault(
            (row["shape"], row["precision"]),
            {"model": f"Qwen2.5-{row['shape'].upper()} shape", "precision": row["precision"], "status": "ok"},
        )
        if not row["way"]:
            continue
        prefix = workload(row)
        if row["status"] == "ok":
            cells |= {f"{prefix}{name}": row[key] for name, key in FIGURES.items()}
            # Bytes of 16-bit weights are the size of the model.
            cells |= {"weight_bytes": round(1e9 * float(row["weights_GB"])), "device": row["device"], **SOURCE}
            cells |= {"kernel": row["kernel"], "bits": "" if row["precision"] == "bfloat16" else "packed"}
        if prefix:
            cells[f"{prefix}status"] = row["status"]
    return [*columns, *REST], list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with open(arguments.rows, newline="") as stream:
        columns, rows = table_of(list(csv.DictReader(stream)))
    with open(arguments.output, "w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
