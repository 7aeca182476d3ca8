"""Results written by hand: a Table 9 with every kind of row, and what lies with it."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effllm.runtime.artifact import digest_file
from effllm.tables.pairs import PAIR_COLUMNS

PRECISIONS = ("bfloat16", "float16", "int4")
NO_SENSOR = "no instrument on this machine measures energy"
LATENCY = ("latency_ms", "latency_ms_low", "latency_ms_high")
STOPPED = f"{', '.join(LATENCY)}: the clock stopped | energy_J_per_token: {NO_SENSOR}"
DISTURBED = "disturbed: others took 31 % of the machine's cores"
COLUMNS = (
    "model", "precision", "average_performance", "AL_sum_ms", "IT_tokens_per_s", "AMU_GB", "AEC_W", "MCR",
    "average_performance_low", "average_performance_high", "latency_ms", "latency_ms_low", "latency_ms_high",
    "memory_peak_GB", "energy_J_per_token", "AMU_scope", "energy_source", "energy_scope", "device", "device_id",
    "threads", "software", "warnings", "status", "reason", "not_measured",
)  # fmt: skip


def row(model: str, precision: str, quality: float, latency_ms: float, memory_gb: float, **changes: Any) -> dict:
    """A valid row without energy; `changes` replace cells."""
    cells = dict.fromkeys(COLUMNS, "")
    cells |= {
        "model": model,
        "precision": precision,
        "average_performance": quality,
        "average_performance_low": round(quality - 0.024, 4),
        "average_performance_high": round(quality + 0.023, 4),
        "latency_ms": latency_ms,
        "latency_ms_low": round(0.92 * latency_ms, 3),
        "latency_ms_high": round(1.08 * latency_ms, 3),
        "memory_peak_GB": memory_gb,
        "MCR": 1.0,
        "AMU_scope": "host process tree",
        "device": "a CPU",
        "threads": 2,
        "software": "torch 2.13.0",
        "status": "ok",
        "not_measured": f"AEC_W, energy_J_per_token, energy_source, energy_scope: {NO_SENSOR}",
    }
    return cells | changes


def table9() -> list[dict]:
    """Two models in three precisions; one row is invalid, one has no latency, two lie on one spot."""
    return [
        row("Llama-1M", "bfloat16", 0.64, 283, 0.48),
        row("Llama-1M", "float16", 0.64, 156, 0.465),
        row("Llama-1M", "int4", 0.6338, 230, 0.639),
        row("Qwen2-1M", "bfloat16", 0.64, 283.5, 0.4801),
        row("Qwen2-1M", "float16", 0.6362, 235, 0.467, status="invalid", reason=DISTURBED),
        row("Qwen2-1M", "int4", 0.6312, 322, 0.64) | dict.fromkeys(LATENCY, "") | {"not_measured": STOPPED},
    ]


def pair(table: str, name: str, baseline: str, column: str, change: float | None, **changes: Any) -> dict:
    """A line of pairs: a ratio of costs unless `changes` say otherwise."""
    cells = {"table": table, "row": name, "baseline": baseline, "column": column, "role": "cost", "better": "lower"}
    line = dict.fromkeys(PAIR_COLUMNS, "") | cells | {"measure": "ratio", "change": "" if change is None else change}
    return line | changes


def pairs(rows: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Every row against its model's bfloat16: 700 items, of which as many differ as the row's number."""
    base = {row["model"]: row for row in rows if row["precision"] == PRECISIONS[0]}
    lines = []
    for number, cells in enumerate(rows):
        against = base[cells["model"]]
        if cells is against:
            continue
        names = [f"{side['model']} {side['precision']}" for side in (cells, against)]
        for column in ("average_performance", "latency_ms", "memory_peak_GB", "energy_J_per_token"):
            values = {"value": cells[column], "baseline_value": against[column]}
            if column == "average_performance":
                difference = round(cells[column] - against[column], 4)
                quality = {"role": "quality", "better": "higher", "measure": "difference"}
                counts = {"items": 700, "differing": number}
                ends = {"low": round(difference - 0.004, 4), "high": round(difference + 0.004, 4)}
                lines.append(pair("table9", *names, column, difference, **values, **quality, **counts, **ends))
            elif cells["status"] != "ok" or "" in values.values():
                reason = "a side of the pair was not measured"
                lines.append(pair("table9", *names, column, None, **values, reason=reason))
            else:
                ratio = round(cells[column] / against[column], 5)
                ends = {"low": round(0.95 * ratio, 5), "high": round(1.05 * ratio, 5)}
                lines.append(pair("table9", *names, column, ratio, **values, **ends))
    return lines


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a CSV as the tables are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_results(directory: Path, rows: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """A results directory with Table 9, its pairs, the record of what it was made from, and two provenances."""
    rows = table9() if rows is None else rows
    path = write_csv(directory / "table9.csv", COLUMNS, rows)
    write_csv(directory / "table9-pairs.csv", PAIR_COLUMNS, pairs(rows))
    names = ["profile/llama-1m.int4", "quantize/llama-1m.int4"]
    for number, name in enumerate(names):
        provenance = {
            "git": {"commit": "0123456789abcdef", "dirty": bool(number)},
            "host": {"cpu": "a CPU", "cpus_usable": 2, "platform": "Linux"},
            "packages": {"torch": "2.13.0"},
            "python": "3.11.9",
            "start": f"2026-11-2{number}T10:00:00Z",
            "end": f"2026-11-2{number}T10:10:00Z",
            "wall_s": 600.0,
        }
        (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / name / "provenance.json").write_text(json.dumps(provenance))
    record = {
        "spec": {"study": "by hand", "table": "table9"},
        "inputs": dict.fromkeys([*names, "evaluate/llama-1m.int4.lost"], "ab" * 32),
        "sha256": digest_file(path).sha256,
    }
    (directory / ".tables").mkdir(exist_ok=True)
    (directory / ".tables" / "table9.json").write_text(json.dumps(record))
    return directory
