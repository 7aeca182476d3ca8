"""Rows whose empty cells say why: a figure that was not measured is None, with a reason, never 0."""

import math
from collections.abc import Sequence
from typing import Any

SIGNIFICANT_DIGITS = 6
# Reasons are sentences with commas and semicolons of their own.
REASON_SEPARATOR = " | "

Cell = tuple[Any, str | None]
"""A value and, where it is None, why."""


class Row:
    """One row of a table under construction, its columns in the order in which they are set."""

    def __init__(self) -> None:
        self.cells: dict[str, Any] = {}
        self.missing: dict[str, str] = {}

    def set(self, column: str, value: Any, reason: str | None = None) -> None:
        """Set a cell. A None needs a `reason`; floats are rounded to six significant digits."""
        if value is None:
            if not reason:
                raise ValueError(f"column {column} is empty without a reason")
            self.missing[column] = reason
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"column {column} is {value}: a figure that is no number must be None, with a reason")
        self.cells[column] = rounded(value)

    def finish(self, status: str, reason: str | None) -> dict[str, Any]:
        """The row with its status, and with the reasons of its empty cells in the last column.

        Columns that lack a figure for the same reason stand together before it.
        """
        columns_by_reason: dict[str, list[str]] = {}
        for column, why in self.missing.items():
            columns_by_reason.setdefault(why, []).append(column)
        missing = REASON_SEPARATOR.join(f"{', '.join(columns)}: {why}" for why, columns in columns_by_reason.items())
        return {**self.cells, "status": status, "reason": reason or "", "not_measured": missing}


def rounded(value: Any) -> Any:
    """Floats to six significant digits: more would be noise in a file that people read."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, summed exactly."""
    return math.fsum(values) / len(values)
