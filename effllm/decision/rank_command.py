"""`effllm rank`: ranks of the rows of a table, of this project or published, with the ties that its figures leave."""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from effllm.decision.effects import NOT_PAIRED, Paired, read_paired
from effllm.decision.ranks import CAVEAT, COLUMNS, REASONS, SCORE, SCORE_PRINTED, Rank, rank_rows, ranks
from effllm.decision.rows import read_table
from effllm.decision.sheet import Sheet, is_published, sheet_of_published, sheet_of_table
from effllm.errors import UserError
from effllm.fields import suggestion

_DIGITS = 6


def register(command: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs."""
    command.epilog = "docs/tables.md says how ranks, normalised figures and the efficiency score are made."
    command.add_argument("table", type=Path, help="results/table<N>.csv or config/paper/table<N>.csv")
    command.add_argument("--column", action="append", default=[], metavar="NAME", help="only this column; repeatable")
    command.add_argument("--csv", action="store_true", help="the columns of results/ranks.csv")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the ranks; 0."""
    sheet, paired, source = _read(arguments.table)
    known = [*sheet.better, SCORE_PRINTED, SCORE]
    for name in arguments.column:
        if name not in known:
            raise UserError(f"--column {name}: {arguments.table} ranks no such column; {suggestion(name, known)}")
    wanted = set(arguments.column or known)
    if arguments.csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rank_rows(sheet, source, paired) if row["column"] in wanted)
        return 0
    found = [rank for rank in ranks(sheet, paired) if rank.column in wanted]
    lines = list(_lines(found))
    why = next((REASONS[rank.code] for rank in found if rank.code), "the table has none of the columns that it needs")
    print("\n".join(lines) if lines else f"Nothing is ranked: {why}.")
    return 0


def _read(path: Path) -> tuple[Sheet, Paired, str]:
    if is_published(path):
        return sheet_of_published(path), NOT_PAIRED, "published"
    table = read_table(path)
    return sheet_of_table(table), read_paired([table]), "ours"


def _lines(found: Sequence[Rank]) -> Iterator[str]:
    """A block per column and group that has ranks, best first, then the rows that have none, and why."""
    for (column, group, better), members in groupby(found, key=lambda rank: (rank.column, rank.group, rank.better)):
        block = list(members)
        ranked = sorted(
            (rank for rank in block if rank.rank is not None), key=lambda rank: (rank.rank, rank.low, rank.high)
        )
        if not ranked:
            continue
        yield f"{column}, {group}: {better} is better"
        width = max(len(rank.row) for rank in block)
        for rank in ranked:
            yield f"  {_places(rank):>5}  {rank.row:{width}}  {_value(rank)}"
        for rank in block:
            if rank.rank is None and rank.code:
                yield f"      -  {rank.row:{width}}  {REASONS[rank.code]}"
        codes = {rank.code for rank in ranked} - {None}
        if "caveat" in codes:
            yield f"  {CAVEAT[0].upper()}{CAVEAT[1:]}."
        elif codes:
            yield f"  Not normalised: {REASONS[codes.pop() or '']}."
        yield ""


def _places(rank: Rank) -> str:
    if rank.low is None or rank.low == rank.high:
        return str(rank.rank)
    return f"{rank.low}-{rank.high}"


def _value(rank: Rank) -> str:
    figure = rank.figure
    if figure is None:
        return ""
    value = f"{figure.value:.{_DIGITS}g}"
    if figure.low is not None and figure.high is not None:
        value += f" [{figure.low:.{_DIGITS}g}, {figure.high:.{_DIGITS}g}]"
    return value if rank.normalised is None else f"{value}  normalised {rank.normalised:.2f}"
