"""The audit of claims: what a set of tables says of each, with the effect and the interval of every pair."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effllm.decision.effects import (
    FAILS,
    HOLDS,
    NO_EFFECT,
    NOT_PAIRED,
    REASONS,
    UNSAID,
    Effect,
    Paired,
    Verdict,
    combined,
    effect,
    judge,
    mean_effect,
    range_effect,
    surely_better,
)
from effllm.decision.sheet import Names, Sheet
from effllm.decision.statements import (
    BestStatement,
    Claim,
    Claims,
    NoneBestStatement,
    PairStatement,
    Statement,
    UndominatedStatement,
)

COLUMNS = (
    "source",
    "claim",
    "statement",
    "part",
    "verdict",
    "reason_code",
    "reason",
    "table",
    "form",
    "column",
    "row",
    "against",
    "measure",
    "effect",
    "low",
    "high",
    "basis",
    "claimed_low",
    "claimed_high",
    "pairs",
    "pairs_missing",
    "context",
    "says",
)
"""The columns of results/claims.csv."""


@dataclass(frozen=True)
class _Line:
    """One verdict: of a claim, of a statement's direction or size, or of one of its pairs or groups."""

    part: str
    verdict: Verdict
    code: str | None = None
    effect: Effect = NO_EFFECT
    row: str = ""
    against: str = ""
    claimed: tuple[float, float] | None = None
    pairs: int | None = None
    missing: int | None = None


def audit(
    claims: Claims, sheets: Mapping[str, Sheet], source: str, paired: Paired = NOT_PAIRED
) -> list[dict[str, Any]]:
    """Rows of results/claims.csv: per claim its verdict, then of each statement the direction, the size and the pairs.

    `sheets` are the tables by name, `source` says whose they are. A verdict that cannot be given has a code.
    """
    rows = []
    for claim in claims.claims:
        found = [(statement, list(_lines(statement, sheets, paired))) for statement in claim.statements]
        rows.append(_claim_row(claim, found, source))
        for number, (statement, lines) in enumerate(found, start=1):
            rows += [_row(claim, number, statement, line, source) for line in lines]
    return rows


def _claim_row(claim: Claim, found: Sequence[tuple[Statement, list[_Line]]], source: str) -> dict[str, Any]:
    """A claim holds where every direction and size that it states does."""
    deciding = [line for statement, lines in found if not statement.context for line in lines if line.part in _DECIDING]
    verdict = combined([line.verdict for line in deciding])
    unsaid = next((line.code for line in deciding if line.verdict == UNSAID), None)
    cells = {
        "source": source,
        "claim": claim.id,
        "part": "claim",
        "verdict": verdict,
        "reason_code": unsaid if verdict == UNSAID else None,
        "reason": REASONS.get(unsaid or "") if verdict == UNSAID else None,
        "says": claim.says,
    }
    return {column: cells.get(column) for column in COLUMNS}


_DECIDING = ("direction", "size")


def _row(claim: Claim, number: int, statement: Statement, line: _Line, source: str) -> dict[str, Any]:
    low, high = line.effect.interval or (None, None)
    claimed = line.claimed or (None, None)
    columns = getattr(statement, "columns", None) or [getattr(statement, "column", "")]
    cells = {
        "source": source,
        "claim": claim.id,
        "statement": number,
        "part": line.part,
        "verdict": line.verdict,
        "reason_code": line.code,
        "reason": REASONS[line.code] if line.code else None,
        "table": statement.table,
        "form": statement.form,
        "column": ", ".join(columns),
        "row": line.row,
        "against": line.against,
        "measure": getattr(statement, "measure", None),
        "effect": line.effect.value,
        "low": low,
        "high": high,
        "basis": line.effect.basis,
        "claimed_low": None if claimed[0] in (None, -math.inf) else claimed[0],
        "claimed_high": None if claimed[1] in (None, math.inf) else claimed[1],
        "pairs": line.pairs,
        "pairs_missing": line.missing,
        "context": statement.context,
        "says": statement.says if line.part in _DECIDING else None,
    }
    return {column: cells[column] for column in COLUMNS}


def _lines(statement: Statement, sheets: Mapping[str, Sheet], paired: Paired) -> Iterator[_Line]:
    sheet = sheets.get(statement.table)
    row = getattr(statement, "row", "")
    if sheet is None:
        yield _Line("direction", UNSAID, "no_table", row=row)
        return
    columns = [statement.column] if isinstance(statement, PairStatement | BestStatement) else statement.columns
    if any(column not in sheet.better for column in columns):
        yield _Line("direction", UNSAID, "no_column", row=row)
        return
    if isinstance(statement, PairStatement):
        yield from _pairs(statement, sheet, paired)
        return
    groups = {
        group: rows for group, rows in sheet.groups().items() if any(_is_meant(statement, sheet, row) for row in rows)
    }
    yield from _grouped(statement, sheet, paired, groups)


def _is_meant(statement: Statement, sheet: Sheet, row: Names) -> bool:
    size, sizes = sheet.sizes.get(row), statement.sizes
    is_any = sizes.at_least == 0.0 and sizes.below == 1e9
    return is_any if size is None else sizes.at_least <= size < sizes.below


def _pairs(statement: PairStatement, sheet: Sheet, paired: Paired) -> Iterator[_Line]:
    rows = [row for row in (*sheet.figures, *sheet.left_out) if sheet.technique_of(row) == statement.row]
    pairs = [(row, sheet.partner(row, statement.against)) for row in rows if _is_meant(statement, sheet, row)]
    known = [(row, base) for row, base in pairs if base is not None and base != row]
    if not known:
        yield _Line("direction", UNSAID, "no_row", row=statement.row, against=statement.against)
        return
    zero = 1.0 if statement.measure == "ratio" else 0.0
    least = 0.0 if statement.measure == "ratio" else -math.inf
    sign = (least, zero) if statement.direction == "lower" else (zero, math.inf)
    details, counting = [], []
    for row, base in known:
        found = effect(sheet, paired, row, base, statement.column, statement.measure)
        batch = _other_batch(statement, sheet, row, base) if found.value is not None else None
        verdict, code = (UNSAID, batch) if batch else judge(found, statement.size or sign)
        line = _Line("pair", verdict, code, found, " ".join(row), " ".join(base), statement.size or sign)
        details.append(line)
        if found.value is not None and not batch:
            counting.append(found)
    summary = _Line(
        "direction", UNSAID, None, row=statement.row, against=statement.against, pairs=len(counting),
        missing=len(details) - len(counting),
    )  # fmt: skip
    parts = {"direction": sign, "size": statement.size} if statement.size else {"direction": sign}
    for part, region in parts.items():
        yield _summary(replace(summary, part=part, claimed=region), statement, counting, details)
    yield from details


def _summary(summary: _Line, statement: PairStatement, counting: Sequence[Effect], details: Sequence[_Line]) -> _Line:
    """The verdict over all pairs, as the form asks."""
    if not counting or summary.claimed is None:
        code = next((line.code for line in details if line.code == "other_batch"), None)
        with_value = [line.effect for line in details if line.effect.value is not None]
        shown = range_effect(with_value) if with_value else NO_EFFECT
        return replace(summary, code=code or "no_pair", effect=shown)
    if statement.form == "mean":
        found = mean_effect(counting)
        return replace(summary, effect=found, **_given(*judge(found, summary.claimed)))
    if statement.form == "every":
        judged = [judge(found, summary.claimed) for found in counting]
        verdict = combined([verdict for verdict, _ in judged])
        code = next((code for _, code in judged if code), None) if verdict == UNSAID else None
        return replace(summary, effect=range_effect(counting), **_given(verdict, code))
    pick = min if statement.direction == "lower" else max
    found = pick(counting, key=lambda one: one.value if one.value is not None else math.nan)
    return replace(summary, effect=found, **_given(*judge(found, summary.claimed)))


def _given(verdict: Verdict, code: str | None) -> dict[str, Any]:
    return {"verdict": verdict, "code": code}


def _other_batch(statement: PairStatement, sheet: Sheet, row: Names, base: Names) -> str | None:
    """`other_batch` where the first of the named columns that both rows have differs between them."""
    for column in statement.same:
        one, other = sheet.value(row, column), sheet.value(base, column)
        if one is None or other is None:
            continue
        return "other_batch" if one.lowest > other.highest or one.highest < other.lowest else None
    return "other_batch" if statement.same else None


def _grouped(
    statement: BestStatement | NoneBestStatement | UndominatedStatement,
    sheet: Sheet,
    paired: Paired,
    groups: Mapping[str, list[Names]],
) -> Iterator[_Line]:
    """A line over all groups, then one per group in which the statement can be asked."""
    lines = []
    for group, rows in groups.items():
        line = _group_line(statement, sheet, paired, group, rows)
        if line is not None:
            lines.append(line)
    row = getattr(statement, "row", "")
    if not lines:
        yield _Line("direction", UNSAID, "no_pair", row=row, pairs=0, missing=len(groups))
        return
    verdict = combined([line.verdict for line in lines])
    code = next((line.code for line in lines if line.verdict == UNSAID), None) if verdict == UNSAID else None
    yield _Line("direction", verdict, code, row=row, pairs=len(lines), missing=len(groups) - len(lines))
    yield from lines


def _group_line(
    statement: BestStatement | NoneBestStatement | UndominatedStatement,
    sheet: Sheet,
    paired: Paired,
    group: str,
    rows: Sequence[Names],
) -> _Line | None:
    if isinstance(statement, NoneBestStatement):
        return _none_best(statement.columns, sheet, paired, group, rows)
    own = next((row for row in rows if sheet.technique_of(row) == statement.row), None)
    columns = statement.columns if isinstance(statement, UndominatedStatement) else [statement.column]
    if own is None or any(sheet.value(own, column) is None for column in columns):
        return None
    among = statement.among if isinstance(statement, BestStatement) else []
    others = [row for row in rows if row != own and (not among or sheet.technique_of(row) in among)]
    if isinstance(statement, UndominatedStatement):
        return _undominated(columns, sheet, paired, own, others)
    return _best(statement.column, sheet, paired, own, others)


def _best(column: str, sheet: Sheet, paired: Paired, own: Names, others: Sequence[Names]) -> _Line | None:
    """Against the best of the others, or whichever decides."""
    compared = [other for other in others if sheet.value(other, column) is not None]
    if not compared:
        return None
    pick = min if sheet.better[column] == "lower" else max
    rival = pick(compared, key=lambda other: sheet.figures[other][column].value)
    shown = effect(sheet, paired, own, rival, column, "ratio")
    line = _Line("group", HOLDS, None, shown, " ".join(own), " ".join(rival), pairs=len(compared))
    if any(surely_better(sheet, paired, other, own, column) for other in compared):
        return replace(line, verdict=FAILS)
    if not all(surely_better(sheet, paired, own, other, column) for other in compared):
        return replace(line, verdict=UNSAID, code="interval" if shown.interval else "margin")
    missing = len(others) - len(compared)
    return replace(line, verdict=UNSAID, code="missing_rows", missing=missing) if missing else line


def _none_best(columns: Sequence[str], sheet: Sheet, paired: Paired, group: str, rows: Sequence[Names]) -> _Line | None:
    """Each row is beaten somewhere; a row that is beaten nowhere and best everywhere refutes it."""
    have = [row for row in rows if any(sheet.value(row, column) is not None for column in columns)]
    if len(have) < 2:
        return None
    unbeaten = []
    for row in have:
        beaten = [c for c in columns for other in have if other != row and surely_better(sheet, paired, other, row, c)]
        if not beaten:
            unbeaten.append(row)
    line = _Line("group", HOLDS, row=group, pairs=len(have))
    if not unbeaten:
        return line
    champion = unbeaten[0]
    is_best = all(
        surely_better(sheet, paired, champion, other, column)
        for other in have
        if other != champion
        for column in columns
    )
    named = replace(line, row=" ".join(champion))
    return replace(named, verdict=FAILS) if is_best else replace(named, verdict=UNSAID, code="missing_rows")


def _undominated(
    columns: Sequence[str], sheet: Sheet, paired: Paired, own: Names, others: Sequence[Names]
) -> _Line | None:
    compared = [other for other in others if all(sheet.value(other, column) is not None for column in columns)]
    if not compared:
        return None
    for other in compared:
        no_worse = all(
            other_value <= own_value if sheet.better[column] == "lower" else other_value >= own_value
            for column in columns
            for other_value, own_value in [(sheet.figures[other][column].value, sheet.figures[own][column].value)]
        )
        if no_worse and any(surely_better(sheet, paired, other, own, column) for column in columns):
            return _Line("group", FAILS, row=" ".join(own), against=" ".join(other), pairs=len(compared))
    missing = len(others) - len(compared)
    line = _Line("group", HOLDS, row=" ".join(own), pairs=len(compared), missing=missing)
    return replace(line, verdict=UNSAID, code="missing_rows") if missing else line
