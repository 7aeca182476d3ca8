"""Ranks, normalised figures and the efficiency score of a table: equations 10 to 12, as printed and as meaningful.

Rows that do not count have no rank and set no minimum. Rows of one group (a model, or a nominal size) that were
measured under the same conditions are ranked together; their ranks are intervals, as far as figures are told apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effllm.decision.effects import NOT_PAIRED, Paired, surely_better
from effllm.decision.rows import Figure
from effllm.decision.sheet import Names, Sheet

COLUMNS = (
    "source",
    "table",
    "group",
    "row",
    "column",
    "better",
    "value",
    "low",
    "high",
    "rank",
    "rank_low",
    "rank_high",
    "ranked",
    "tied_with",
    "normalised_printed",
    "normalised",
    "reason_code",
    "reason",
)
"""The columns of results/ranks.csv."""

SCORE = "efficiency_score"
SCORE_PRINTED = "efficiency_score_printed"
CAVEAT = (
    "the score decides nothing: it rewards little use of the processor and little power, whatever the time, so that "
    "the slowest row of a table can come second"
)
REASONS = {
    "not_measured": "not measured, or not recovered",
    "not_ok": "the row is no valid result",
    "alone": "no other row of the group has this figure",
    "not_told_apart": "the best and the worst row are not told apart: their distance would be noise, stretched",
    "one_value": "all rows have the same figure, for which the equation has no value",
    "incomplete": "not every technique has this figure in two groups or more",
    "caveat": CAVEAT,
}
_THROUGHPUT = "ST_samples_per_param_s"
_LATENCY = "AL_s_per_iter"
# Terms of equation 12: the column, and whether the printed form has its fraction the other way round.
_TERMS = (("AMU_GB", False), ("PCU", False), (_LATENCY, True), (_THROUGHPUT, True), ("AEC_W", False))


@dataclass(frozen=True)
class Rank:
    """One row by one column.

    rank: by the figures alone, equal ones sharing the first. low, high: the ranks that it may have, given what is told
    apart. tied: the rows that it is not told apart from. printed, normalised: equations 10 and 11, 0.1 to 1, 1 the
    best; the second is None where it would stretch noise.
    """

    group: str
    row: str
    column: str
    better: str
    figure: Figure | None
    code: str | None = None
    rank: int | None = None
    low: int | None = None
    high: int | None = None
    ranked: int | None = None
    tied: tuple[str, ...] = ()
    printed: float | None = None
    normalised: float | None = None


def ranks(sheet: Sheet, paired: Paired = NOT_PAIRED) -> list[Rank]:
    """Every row by every quality and cost: within its group, as a mean over groups, and by the efficiency score."""
    found: list[Rank] = []
    for column in sheet.better:
        for group, rows in _groups(sheet).items():
            found += _within(sheet, paired, column, group, rows)
        found += _over_groups(sheet, column)
    return found + list(_scores(sheet))


def rank_rows(sheet: Sheet, source: str, paired: Paired = NOT_PAIRED) -> list[dict[str, Any]]:
    """The same as rows of results/ranks.csv."""
    return [_cells(rank, sheet.name, source) for rank in ranks(sheet, paired)]


def normalise(values: Mapping[Any, float], better: str) -> dict[Any, float | None]:
    """Equations 10 and 11: 0.1 for the worst value, 1 for the best; None where all are equal, and it has no value."""
    low, high = min(values.values()), max(values.values())
    if low == high:
        return dict.fromkeys(values)
    worst = high if better == "lower" else low
    return {key: 0.1 + 0.9 * abs(value - worst) / (high - low) for key, value in values.items()}


def efficiency_scores(terms: Mapping[Names, Mapping[str, float]], printed: bool) -> dict[Names, float]:
    """Equation 12 over rows that have all five terms; 1 is the best of every column.

    As printed, the fractions of AL and ST are the other way round: more latency and less throughput raise the score.
    """
    extremes = {
        column: (max if column == _THROUGHPUT else min)(row[column] for row in terms.values()) for column, _ in _TERMS
    }
    scores = {}
    for names, row in terms.items():
        total = 0.0
        for column, is_inverted in _TERMS:
            share = extremes[column] / row[column]
            # Throughput is the higher the better: the meaningful share is that of the highest.
            meaningful = 1 / share if column == _THROUGHPUT else share
            total += 1 / meaningful if printed and is_inverted else meaningful
        scores[names] = total / len(_TERMS)
    return scores


def _groups(sheet: Sheet) -> dict[str, list[Names]]:
    """Rows by group and conditions; where a group was measured under several, each says which."""
    groups: dict[str, list[Names]] = {}
    for group, rows in sheet.groups().items():
        by_conditions: dict[tuple[str | None, ...], list[Names]] = {}
        for row in rows:
            by_conditions.setdefault(sheet.conditions(row), []).append(row)
        for conditions, members in by_conditions.items():
            differing = _differing(sheet, conditions, by_conditions) if len(by_conditions) > 1 else ""
            groups[f"{group}{differing}"] = members
    return groups


def _differing(sheet: Sheet, conditions: tuple[str | None, ...], others: Mapping[tuple[str | None, ...], Any]) -> str:
    named = [
        f"{name} {conditions[index]}"
        for index, name in enumerate(sheet.scope)
        if len({other[index] for other in others}) > 1
    ]
    return f" ({', '.join(named)})"


def _within(sheet: Sheet, paired: Paired, column: str, group: str, rows: Sequence[Names]) -> Iterator[Rank]:
    better = sheet.better[column]
    measured = {row: sheet.figures[row][column] for row in rows if column in sheet.figures[row]}
    printed = normalise({row: figure.value for row, figure in measured.items()}, better) if measured else {}
    sure = {
        (row, other): bool(surely_better(sheet, paired, row, other, column))
        for row in measured
        for other in measured
        if row != other
    }
    is_spread = any(sure.values())
    left_out = [row for row in sheet.left_out if sheet.group_of(row) == group]
    for row in (*rows, *left_out):
        rank = Rank(group, " ".join(row), column, better, measured.get(row))
        if row not in measured:
            yield replace(rank, code="not_ok" if row in sheet.left_out else "not_measured")
            continue
        if len(measured) == 1:
            yield replace(rank, code="alone")
            continue
        worse = sum(sure[row, other] for other in measured if other != row)
        ahead = sum(sure[other, row] for other in measured if other != row)
        tied = [other for other in measured if other != row and not sure[row, other] and not sure[other, row]]
        yield replace(
            rank,
            rank=_place(measured[row].value, [figure.value for figure in measured.values()], better),
            low=1 + ahead,
            high=len(measured) - worse,
            ranked=len(measured),
            tied=tuple(" ".join(other) for other in tied),
            printed=printed[row],
            normalised=printed[row] if is_spread else None,
            code=None if is_spread else "one_value" if printed[row] is None else "not_told_apart",
        )


def _over_groups(sheet: Sheet, column: str) -> Iterator[Rank]:
    """Techniques by the plain mean over groups, as in the paper's figure: over groups alone that have every one."""
    by_group = {
        group: {sheet.technique_of(row): sheet.figures[row][column] for row in rows if column in sheet.figures[row]}
        for group, rows in sheet.groups().items()
    }
    techniques = list(dict.fromkeys(sheet.technique_of(row) for row in (*sheet.figures, *sheet.left_out)))
    complete = [figures for figures in by_group.values() if all(technique in figures for technique in techniques)]
    better = sheet.better[column]
    if len(complete) < 2 or len(techniques) < 2:
        if len(by_group) > 1:
            yield Rank("mean over groups", "", column, better, None, "incomplete")
        return
    means = {
        technique: sum(figures[technique].value for figures in complete) / len(complete) for technique in techniques
    }
    normalised = normalise(means, better)
    for technique, value in means.items():
        place = _place(value, list(means.values()), better)
        yield Rank(
            f"mean over {len(complete)} groups", technique, column, better, Figure(value), rank=place,
            ranked=len(means), printed=normalised[technique],
        )  # fmt: skip


def _scores(sheet: Sheet) -> Iterator[Rank]:
    """Equation 12, for the tables that have its five terms: those of fine-tuning."""
    if _THROUGHPUT not in sheet.better:
        return
    terms = {
        row: {column: figures[column].value for column, _ in _TERMS if column in figures and figures[column].value > 0}
        for row, figures in sheet.figures.items()
    }
    complete = {row: values for row, values in terms.items() if len(values) == len(_TERMS)}
    for name, is_printed in ((SCORE_PRINTED, True), (SCORE, False)):
        scores = efficiency_scores(complete, is_printed) if complete else {}
        for row in (*sheet.figures, *sheet.left_out):
            rank = Rank("table", " ".join(row), name, "higher", None)
            if row not in scores:
                yield replace(rank, code="not_ok" if row in sheet.left_out else "not_measured")
                continue
            place = _place(scores[row], list(scores.values()), "higher")
            yield replace(rank, figure=Figure(scores[row]), code="caveat", rank=place, ranked=len(scores))


def _place(value: float, values: Sequence[float], better: str) -> int:
    return 1 + sum(other < value if better == "lower" else other > value for other in values)


def _cells(rank: Rank, table: str, source: str) -> dict[str, Any]:
    figure = rank.figure
    cells = (
        source, table, rank.group, rank.row, rank.column, rank.better,
        figure.value if figure else None, figure.low if figure else None, figure.high if figure else None,
        rank.rank, rank.low, rank.high, rank.ranked, "; ".join(rank.tied), rank.printed, rank.normalised,
        rank.code, REASONS[rank.code] if rank.code else None,
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))
