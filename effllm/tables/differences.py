"""Which rows of a table its measurement tells apart: those whose 95 % intervals do not overlap."""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any


def differences(rows: Sequence[Mapping[str, Any]], column: str, group: str, name: str) -> list[str]:
    """One sentence part per value of `group`: its `ok` rows by `column`, smallest first.

    `<` is between neighbours whose intervals (`<column>_low`, `<column>_high`) lie apart, `~` between those that the
    measurement does not tell apart. Rows without a figure or with another status are left out.
    """
    measured = [row for row in rows if row["status"] == "ok" and row[column] is not None]
    lines = []
    for value, members in groupby(sorted(measured, key=lambda row: str(row[group])), key=lambda row: row[group]):
        ordered = sorted(members, key=lambda row: row[column])
        if len(ordered) < 2:
            continue
        text = str(ordered[0][name])
        for left, right in pairwise(ordered):
            apart = left[f"{column}_high"] < right[f"{column}_low"]
            text += f" {'<' if apart else '~'} {right[name]}"
        lines.append(f"{value}: {text}")
    return lines
