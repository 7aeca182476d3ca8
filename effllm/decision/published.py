"""The values that the EfficientLLM study published, with where each was read and how far that can be trusted."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from effllm.errors import UserError

Code = Literal["S2", "K", "D", "C"]
"""Provenance: quoted from the paper (S2), read in released data (K), digitised from a figure (D), computed (C)."""

COLUMNS = ("metric", "value", "low", "high", "code", "note")
"""The columns of every file after the two that name a row of its table."""


@dataclass(frozen=True)
class Published:
    """One published figure.

    keys: what names its row, for example {"model": "Yi-34B", "precision": "int4"}. value: in the unit that the
    name of the metric ends in. interval: where the figure lies given how it was read (rounding, or calibration
    of the figure it was digitised from); None where that is unknown, never a width of 0.
    """

    keys: dict[str, str]
    metric: str
    value: float
    interval: tuple[float, float] | None
    code: Code
    note: str


def read_published(path: Path) -> list[Published]:
    """The figures of one config/paper/table<N>.csv, in the file's order.

    Raises:
        UserError: the file is missing, or a line of it is malformed, repeated or contradicts itself.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; the published tables lie in config/paper.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        header = tuple(reader.fieldnames or ())
        if len(header) != 2 + len(COLUMNS) or header[2:] != COLUMNS:
            raise UserError(
                f"{path}: the header is {','.join(header)!r}; write two columns that name a row, "
                f"then {','.join(COLUMNS)}."
            )
        figures = []
        seen = set()
        for line in reader:
            figure = _figure(line, header[:2], f"{path}:{reader.line_num}")
            key = (*figure.keys.values(), figure.metric)
            if key in seen:
                raise UserError(f"{path}:{reader.line_num}: {' '.join(key)} is given twice; keep one of the lines.")
            seen.add(key)
            figures.append(figure)
    return figures


def _figure(line: dict, keys: tuple[str, ...], place: str) -> Published:
    if None in line or None in line.values():
        raise UserError(f"{place}: the line does not have the {len(keys) + len(COLUMNS)} columns of the header.")
    if line["code"] not in get_args(Code):
        raise UserError(f"{place}: code {line['code']!r} is unknown; write one of {', '.join(get_args(Code))}.")
    value = _number(line, "value", place)
    interval = None
    if line["low"] or line["high"]:
        interval = _number(line, "low", place), _number(line, "high", place)
        if not interval[0] <= value <= interval[1]:
            raise UserError(f"{place}: value {value:g} lies outside low to high, {interval[0]:g} to {interval[1]:g}.")
    return Published({key: line[key] for key in keys}, line["metric"], value, interval, line["code"], line["note"])


def _number(line: dict[str, str], column: str, place: str) -> float:
    try:
        value = float(line[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: {column} is {line[column]!r}; write a finite number.")
    return value
