"""Where the answer changes: the next bound of each limit at which another row is recommended, and what would fit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from effllm.decision.budget import Kind, Limit
from effllm.decision.choice import Field
from effllm.decision.dominance import members
from effllm.decision.rows import Row

Sign = Literal["<", "<=", ">", ">="]


@dataclass(frozen=True)
class Breakpoint:
    """The recommendation is `rows` once the limit on `column` is `sign` `bound`, every other limit as it is.

    kind: whether the limit is a `max` or a `min`. rows: none where nothing fits any more.
    """

    column: str
    kind: Kind
    sign: Sign
    bound: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Relaxation:
    """With `limits` in place of those of the same columns something fits: `rows` are recommended then.

    factor: the largest of the new bounds over the old ones, or the old over the new of a `min`; None at a bound of 0.
    """

    limits: tuple[Limit, ...]
    factor: float | None
    rows: tuple[Row, ...]


def breakpoints(field: Field) -> list[Breakpoint]:
    """For every limit, and for every cost without one, the next bound to either side that changes the answer.

    A bound that changes only which rows fit, and not which are recommended, is none.
    """
    limits = field.rules.limits
    current = field.choose(field.fitting(limits)).chosen
    found: list[Breakpoint] = []
    for limit in limits:
        others = field.fitting([other for other in limits if other is not limit])
        found += _around(field, limit, others, current)
    limited = {limit.column for limit in limits}
    for column in field.costs:
        if column in limited:
            continue
        kind: Kind = "max" if field.table.direction(column) == "lower" else "min"
        unlimited = Limit(column, kind, float("inf") if kind == "max" else float("-inf"))
        # A row without a figure would leave at any limit at all, which no bound tells.
        if not current & ~field.order(column).known:
            found += _tighter(field, unlimited, field.fitting(limits), current)
    return found


def _around(field: Field, limit: Limit, others: int, current: int) -> Iterator[Breakpoint]:
    yield from _tighter(field, limit, others, current)
    needed = _needed(field, limit, others)
    # From the tightest bound that lets one more row in.
    waiting = sorted({bound for bound in needed.values() if not limit.holds(bound)}, reverse=limit.kind == "min")
    for bound in waiting:
        fitting = sum(1 << i for i, own in needed.items() if not limit.looser(own, bound))
        chosen = field.choose(fitting).chosen
        if chosen != current:
            yield Breakpoint(
                limit.column, limit.kind, ">=" if limit.kind == "max" else "<=", bound, _rows(field, chosen)
            )
            return


def _tighter(field: Field, limit: Limit, others: int, current: int) -> Iterator[Breakpoint]:
    needed = _needed(field, limit, others)
    within = sorted({bound for bound in needed.values() if limit.holds(bound)}, reverse=limit.kind == "max")
    for bound in within:
        fitting = sum(1 << i for i, own in needed.items() if limit.looser(bound, own))
        chosen = field.choose(fitting).chosen
        if chosen != current:
            yield Breakpoint(limit.column, limit.kind, "<" if limit.kind == "max" else ">", bound, _rows(field, chosen))
            return


def relaxations(field: Field) -> list[Relaxation]:
    """The changes of one limit by which something fits, the smallest first; of all that fail together where none does.

    None where a limited column was not measured in any row that fits the rest: no bound lets such a row in.
    """
    limits = field.rules.limits
    found = []
    for limit in limits:
        others = field.fitting([other for other in limits if other is not limit])
        needed = _needed(field, limit, others)
        if needed:
            bound = min(needed.values()) if limit.kind == "max" else max(needed.values())
            found.append(_relaxed(field, (Limit(limit.column, limit.kind, bound),)))
    if not found:
        found = [_relaxed(field, failing) for row in field.rows if (failing := _failing(row, limits))]
        found = sorted(found, key=_size)[:1]
    return sorted(found, key=_size)


def _failing(row: Row, limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """The limits that would let the row in, in place of those that do not; empty where one cannot."""
    if any(limit.column not in row.figures for limit in limits):
        return ()
    failing = [limit for limit in limits if limit.answer(row.figures[limit.column]) != "fits"]
    return tuple(Limit(limit.column, limit.kind, limit.needed(row.figures[limit.column])) for limit in failing)


def _relaxed(field: Field, changed: tuple[Limit, ...]) -> Relaxation:
    by_key = {(limit.column, limit.kind): limit for limit in changed}
    limits = [by_key.get((limit.column, limit.kind), limit) for limit in field.rules.limits]
    factors = [
        (1 / factor if old.kind == "min" else factor) if (factor := old.factor(new.bound)) else math.inf
        for old, new in zip(field.rules.limits, limits, strict=True)
        if old != new
    ]
    largest = max(factors)
    return Relaxation(
        changed, largest if math.isfinite(largest) else None, _rows(field, field.choose(field.fitting(limits)).chosen)
    )


def _size(relaxation: Relaxation) -> tuple[int, bool, float]:
    return len(relaxation.limits), relaxation.factor is None, relaxation.factor or 0.0


def _needed(field: Field, limit: Limit, rows: int) -> dict[int, float]:
    """By row of a set, the tightest bound that it fits; rows without a figure fit none."""
    figures = {i: field.rows[i].figures.get(limit.column) for i in members(rows)}
    return {i: limit.needed(figure) for i, figure in figures.items() if figure}


def _rows(field: Field, rows: int) -> tuple[Row, ...]:
    return tuple(field.rows[i] for i in members(rows))
