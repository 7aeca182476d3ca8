"""`effllm crossover`: from which model size on each precision of a table saves time, energy and memory."""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from effllm.decision.crossover import COLUMNS, crossover_rows
from effllm.decision.effects import read_paired
from effllm.decision.rows import read_table
from effllm.decision.sheet import sheet_of_table
from effllm.errors import UserError
from effllm.fields import suggestion
from effllm.tables.columns.quantization import QUANTIZATION


def register(command: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs."""
    command.epilog = "docs/tables.md says how sizes are interpolated and what the interval holds."
    command.add_argument("table", type=Path, help="results/table9.csv, of this study or another")
    command.add_argument("--baseline", help="precision to compare with (default: that of the first row)")
    command.add_argument("--csv", action="store_true", help="the columns of results/crossover.csv")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each method, workload and resource; 0."""
    table = read_table(arguments.table)
    if table.description is not QUANTIZATION:
        raise UserError(f"{arguments.table} is about {table.description.title}; give a table 9, of precisions.")
    known = list(dict.fromkeys(row.names[1] for row in table.rows))
    baseline = arguments.baseline or known[0]
    if baseline not in known:
        raise UserError(
            f"--baseline {baseline}: {arguments.table} has no such precision; {suggestion(baseline, known)}"
        )
    rows = crossover_rows(sheet_of_table(table), read_paired([table]), baseline)
    if arguments.csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return 0
    for row in rows:
        workload = f" ({row['workload']})" if row["workload"] else ""
        print(f"{row['method']} against {row['baseline']}, {row['resource']}{workload}: {_sentence(row)}")
    return 0


def _sentence(row: dict[str, Any]) -> str:
    if row["saves"] is None:
        return str(row["reason"])
    if row["parameters_b"] is None:
        return f"saves {row['saves']} ({row['measured_b']} billion parameters; ratios {row['ratios']})"
    low, high = (f"{row[end]:.3g}" if row[end] else "?" for end in ("parameters_b_low", "parameters_b_high"))
    reason = f"; {row['reason']}" if row["reason"] else ""
    which = row["saves"].replace("this size", f"{row['parameters_b']:.3g} [{low}, {high}] billion parameters")
    return f"saves {which}{reason}"
