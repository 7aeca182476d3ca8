"""Tables for decisions, written by hand or drawn by hypothesis."""

import csv
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from effllm.decision.rows import Figure, Row, Table
from effllm.tables.descriptions import DESCRIPTIONS

COSTS = ("latency_ms", "memory_peak_GB", "energy_J_per_token")
QUALITY = "average_performance"
HEADER = (
    *("model", "precision", QUALITY, f"{QUALITY}_low", f"{QUALITY}_high", "MCR"),
    *("latency_ms", "latency_ms_low", "latency_ms_high", "memory_peak_GB", "energy_J_per_token"),
    *("device", "device_id", "energy_scope", "threads", "software", "warnings", "status", "reason", "not_measured"),
)
CONDITIONS = {"device": "a GPU", "device_id": "aa", "energy_scope": "gpu", "threads": "4", "software": "torch 2.11.0"}


def line(name: str, **cells: object) -> dict[str, str]:
    """One line of a Table 9: `M int4`, and cells; intervals as (value, low, high)."""
    model, _, precision = name.partition(" ")
    found: dict[str, object] = dict.fromkeys(HEADER, "") | CONDITIONS | {"status": "ok"}
    found |= {"model": model, "precision": precision}
    for column, value in cells.items():
        if isinstance(value, tuple):
            found |= dict(zip((column, f"{column}_low", f"{column}_high"), value, strict=True))
        else:
            found[column] = value
    return {column: str(value) for column, value in found.items()}


def write(path: Path, lines: Sequence[dict[str, str]]) -> Path:
    """A Table 9 as a file."""
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, HEADER)
        writer.writeheader()
        writer.writerows(lines)
    return path


# Few values, so that ties, touching intervals and equal rows come often.
_VALUES = st.integers(1, 8).map(float)


@st.composite
def figures(draw: st.DrawFn) -> Figure:
    """A figure, with an interval or without."""
    value = draw(_VALUES)
    if draw(st.booleans()):
        return Figure(value)
    below, above = draw(st.sampled_from((0.0, 0.4, 1.0, 2.0))), draw(st.sampled_from((0.0, 0.4, 1.0, 2.0)))
    return Figure(value, value - below, value + above)


@st.composite
def tables(draw: st.DrawFn, most: int = 7) -> Table:
    """A Table 9 of some rows: figures that are missing, rows that are invalid, of two cards."""
    description = DESCRIPTIONS["table9"]
    rows = []
    for number in range(1, draw(st.integers(1, most)) + 1):
        # Most rows count and have most figures: a table of holes would test nothing but holes.
        measured = {name: draw(figures()) if draw(st.integers(0, 6)) else None for name in (*COSTS, QUALITY)}
        status = draw(st.sampled_from((*["ok"] * 7, "invalid", "oom")))
        rows.append(
            Row(
                number,
                (draw(st.sampled_from(("M", "N"))), f"p{number}"),
                status,
                "" if status == "ok" else "why",
                {name: figure for name, figure in measured.items() if figure is not None},
                dict.fromkeys(HEADER) | CONDITIONS | {"device_id": draw(st.sampled_from((*["aa"] * 6, "bb")))},
                {},
            )
        )
    return Table(Path("table9.csv"), description, description.columns(HEADER), tuple(rows))
