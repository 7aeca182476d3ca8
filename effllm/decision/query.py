"""What the user asks of a table: limits, preferences and how rows are compared, checked against its columns."""

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from effllm.decision.budget import Kind, Limit
from effllm.decision.rows import Row, Table
from effllm.errors import UserError

MARGIN = 0.05
"""Repeats of a row on one card, and cards of one kind, differ by so much."""
CARD = "device_id"
_FIGURES = ("quality", "cost")


@dataclass(frozen=True)
class Query:
    """A question to a table.

    workload: None for the table's own. model: the subject that rows must have, None for all. quality_loss: points or
    per cent that a row may surely lose. explain: a text in the names of rows to explain, None for none. across_cards:
    whether cards of one kind are compared with each other.
    """

    limits: tuple[Limit, ...] = ()
    quality_loss: float = 0.0
    workload: str | None = None
    model: str | None = None
    prefer: tuple[str, ...] = ()
    margin: float = MARGIN
    explain: str | None = None
    across_cards: bool = False


def parse_limits(table: Table, texts: Iterable[tuple[Kind, str]], workload: str | None) -> tuple[Limit, ...]:
    """Limits from `--max COLUMN=VALUE` and `--min COLUMN=VALUE`; `UserError` names what is wrong and the remedy."""
    limits: dict[tuple[str, Kind], Limit] = {}
    for kind, text in texts:
        name, equals, number = text.partition("=")
        if not equals:
            raise UserError(f"--{kind} {text}: write a column, = and a number, such as --max memory_peak_GB=24.")
        column = resolve(table, name.strip(), workload, f"--{kind} {text}")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            raise UserError(f"--{kind} {text}: {number!r} is no finite number; write one, such as {name}=24.")
        better = table.direction(column)
        if better and kind != ("max" if better == "lower" else "min"):
            other = "min" if kind == "max" else "max"
            raise UserError(
                f"--{kind} {text}: of {name} {'less' if better == 'lower' else 'more'} is better, and a limit keeps "
                f"out what is worse; write --{other} {text}."
            )
        if (column, kind) in limits:
            raise UserError(f"--{kind} {text}: {column} has a limit of this kind already; give it once.")
        limits[column, kind] = Limit(column, kind, bound)
    return tuple(limits.values())


def resolve(table: Table, name: str, workload: str | None, given: str) -> str:
    """The column that a name means, that of the asked workload where it has one. given: the option, for the error."""
    columns = {key: column for key, column in table.columns.items() if column.role in _FIGURES}
    if name in columns:
        return workload_column(table, name, workload)
    if name in table.columns:
        role = table.columns[name].role
        raise UserError(f"{given}: {name} is a {role} and no figure; name one of {', '.join(columns)}.")
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.4)
    by_case = [key for key in columns if key.lower() == name.lower()]
    hint = f"did you mean {(by_case or near)[0]!r}?" if by_case or near else f"it has {', '.join(columns)}."
    raise UserError(f"{given}: {table.path} has no column {name!r}; {hint}")


def workload_column(table: Table, name: str, workload: str | None) -> str:
    """The same column of another workload; itself where there is none."""
    pattern = table.description.workloads.get(name)
    return pattern.replace("*", workload) if workload and pattern else name


def check_workload(table: Table, workload: str) -> None:
    """`UserError` unless the table has figures of this workload."""
    status = table.description.workloads.get("status", "")
    before, _, after = status.partition("*")
    known = [
        name[len(before) : len(name) - len(after)]
        for name, column in table.columns.items()
        if status and column.role == "status" and name.endswith(after) and name != after and len(name) > len(after)
    ]
    if workload not in known:
        others = (
            f"it has {', '.join(known)}, and its own if --workload is left out" if known else "it has its own alone"
        )
        raise UserError(f"--workload {workload}: {table.path} has no such workload; {others}.")


def of_subject(table: Table, wanted: str) -> list[Row]:
    """The rows of one model (or size): named whole, or by a part of the name that only one has."""
    position = table.description.names.index(table.description.subject)
    subjects = list(dict.fromkeys(row.names[position] for row in table.rows))
    found = [name for name in subjects if name == wanted] or [
        name for name in subjects if wanted.lower() in name.lower()
    ]
    if len(found) != 1:
        says = f"means {', '.join(map(repr, found))}" if found else "is none of the table's"
        raise UserError(f"--model {wanted}: {says}; name one of {', '.join(map(repr, subjects))}.")
    return [row for row in table.rows if row.names[position] == found[0]]


def explained(rows: Sequence[Row], text: str) -> list[Row]:
    """The rows whose name is or contains a text; `UserError` if none does."""
    found = [row for row in rows if text in (row.name, *row.names)]
    found = found or [row for row in rows if text.lower() in row.name.lower()]
    if not found:
        names = [row.name for row in rows]
        near = difflib.get_close_matches(text, names + [name for row in rows for name in row.names], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"rows are {', '.join(names[:6])}{', ...' * (len(names) > 6)}."
        raise UserError(f"--explain {text}: no row has that in its name; {hint}")
    return found


def short_names(table: Table) -> dict[str, str]:
    """By name, names without the words that all subjects end in; without the subject where all rows have the same."""
    position = table.description.names.index(table.description.subject)
    subjects = list(dict.fromkeys(row.names[position] for row in table.rows))
    words = [name.split(" ") for name in subjects]
    ending = 0
    while (
        all(len(parts) > ending + 1 for parts in words) and len({tuple(p[len(p) - ending - 1 :]) for p in words}) == 1
    ):
        ending += 1
    short = {
        name: " ".join(parts[: len(parts) - ending]).rstrip(",") for name, parts in zip(subjects, words, strict=True)
    }
    if len(set(short.values())) < len(subjects):
        short = {name: name for name in subjects}
    if len(subjects) == 1 and len(table.rows) > 1:
        short = {subjects[0]: ""}
    return {
        row.name: " ".join(part for i, name in enumerate(row.names) if (part := short[name] if i == position else name))
        for row in table.rows
    }
