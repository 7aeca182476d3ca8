"""Tables for people: the paper's columns on a terminal, or every column row by row."""

from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console, JustifyMethod
from rich.table import Table

from effllm.errors import UserError
from effllm.tables.cells import REASON_SEPARATOR
from effllm.tables.differences import differences

# Columns that are printed beside a row: all others are in the file.
_ARCHITECTURES = (
    "method",
    "parameters",
    "top_k",
    "micro_batch",
    "context",
    "PPL",
    "AMU_GB",
    "AL_s_per_iter",
    "TT_tokens_per_param_s",
    "AEC_W",
    "GPU_hours",
    "parameters_total",
    "status",
)
_METHODS = (
    "model",
    "method",
    "loss",
    "AMU_GB",
    "PCU",
    "AL_s_per_iter",
    "ST_samples_per_param_s",
    "AEC_W",
    "held_out_loss",
    "adapter_rank",
    "parameters_trainable",
    "memory_peak_GB",
    "status",
)
_IMAGES = (
    "model",
    "method",
    "FID",
    "AMU_GB",
    "AL_s_per_iter",
    "TT_tokens_per_param_s",
    "AEC_W",
    "images_per_s",
    "mfu",
    "held_out_loss",
    "parameters_total",
    "status",
)
_LOADS = (
    "served",
    "precision",
    "average_performance",
    "max_rate_per_s",
    "offered_requests_per_s",
    "output_tokens_per_s",
    "goodput_requests_per_s",
    "ttft_ms_p90",
    "tpot_ms_p50",
    "energy_J_per_output_token",
    "status",
)
_SHOWN = {
    **dict.fromkeys(("table3", "table4", "table5", "table6", "curriculum"), _ARCHITECTURES),
    **dict.fromkeys(("table7", "table8"), _METHODS),
    "table12": (*_METHODS[:-3], "held_out_loss_blank", "looks", *_METHODS[-3:]),
    **dict.fromkeys(("table10", "table11"), _IMAGES),
    "table13": _METHODS,
    "serving": _LOADS,
    "scaling": (
        "table",
        "method",
        "fitted",
        "points",
        "alpha",
        "alpha_low",
        "alpha_high",
        "beta",
        "beta_low",
        "beta_high",
        "predicted_loss",
        "rank",
        "rank_probabilities",
    ),
    "table9": (
        "model",
        "precision",
        "average_performance",
        "AL_sum_ms",
        "IT_tokens_per_s",
        "AMU_GB",
        "AEC_W",
        "MCR",
        "mcr_measured",
        "latency_ms",
        "status",
    ),
}
_NARROW_TERMINAL = 140


def print_table(path: Path) -> None:
    """Print the chosen columns of a table; all but the long text where none are chosen."""
    frame = _read(path)
    shown = _SHOWN.get(path.stem) or [name for name in frame.columns if "_" not in name and name != "reason"]
    columns = [name for name in shown if name in frame.columns]
    table = Table(title=path.stem)
    for name in columns:
        justify: JustifyMethod = "left" if frame[name].dtype == pl.String else "right"
        table.add_column(name.replace("_", " "), justify=justify, overflow="fold")
    for row in frame.iter_rows(named=True):
        table.add_row(*(_text(row[name]) for name in columns))
    console = Console()
    # A pipe or a CI log has no width: cutting columns there would lose figures.
    console.width = max(console.width, _NARROW_TERMINAL)
    console.print(table)
    console.print(f"{frame.width} columns in {path}; see them all: effllm show --all {path}", highlight=False)
    for line in [*_failed(frame), *_resolved(path, frame)]:
        console.print(line, highlight=False, markup=False)
    for name in columns:
        if frame.height and frame[name].null_count() == frame.height:
            console.print(f"{name}: not measured. {_why(frame, name)}", highlight=False)


def print_blocks(path: Path) -> None:
    """Print every column of every row, one per line."""
    console = Console()
    for row in _read(path).iter_rows(named=True):
        console.rule(_name(row))
        for name, value in row.items():
            console.print(f"{name:34} {_text(value)}", highlight=False, markup=False)


def _failed(frame: pl.DataFrame) -> list[str]:
    """Why rows have no valid result."""
    if not {"status", "reason"} <= set(frame.columns):
        return []
    rows = [row for row in frame.iter_rows(named=True) if row["reason"]]
    return [f"{_name(row)}: {row['status']}. {row['reason']}" for row in rows]


def _name(row: dict[str, Any]) -> str:
    """The first two columns, which name a row in every table."""
    return " ".join(_text(value) for value in list(row.values())[:2])


def _resolved(path: Path, frame: pl.DataFrame) -> list[str]:
    """Which differences of latency the table resolves, by model and by precision."""
    if path.stem != "table9" or "latency_ms_low" not in frame.columns:
        return []
    rows = list(frame.iter_rows(named=True))
    chains = differences(rows, "latency_ms", "model", "precision") + differences(
        rows, "latency_ms", "precision", "model"
    )
    if not chains:
        return ["latency ms: no two rows that are ok can be compared."]
    begin = "latency ms, < where the 95 % intervals (of one process each) lie apart, ~ where they overlap: "
    return [begin + "; ".join(chains)]


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(path, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path} is not readable CSV ({why:.120}); give a table, such as results/table9.csv.") from None


def _why(frame: pl.DataFrame, column: str) -> str:
    for part in str(frame["not_measured"][0]).split(REASON_SEPARATOR):
        names, _, reason = part.partition(": ")
        if column in names.split(", "):
            return reason
    return ""


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)
