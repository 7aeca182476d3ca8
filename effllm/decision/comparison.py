"""results/comparison.csv: our figures and the published ones side by side, and contradictions in the latter."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effllm.decision.consistency import TOKENS, Finding, findings
from effllm.decision.effects import NO_EFFECT, NOT_PAIRED, Effect, Paired, effect
from effllm.decision.rows import Figure
from effllm.decision.sheet import Names, Sheet

COLUMNS = (
    "kind",
    "table",
    "row",
    "against",
    "column",
    "better",
    "ours",
    "ours_low",
    "ours_high",
    "published",
    "published_low",
    "published_high",
    "code",
    "ours_over_published",
    "comparable",
    "reason_code",
    "reason",
    "note",
)
"""The columns of results/comparison.csv."""

REASONS = {
    "no_row": "our table has no such row",
    "no_baseline": "one of the two tables has no row of the baseline in this group",
    "not_ok": "our row, or its baseline, is no valid result",
    "not_measured": "our row, or its baseline, has no such figure",
    "not_recovered": "the published figure of the baseline was not recovered",
    "not_positive": "a ratio needs figures above zero",
    "no_size": "the number of parameters, which the throughput is divided by, is not known on both sides",
    "other_conditions": "our two rows were measured under different conditions",
    "other_machine": "absolute figures of another device, or of another number of them, do not compare",
    "other_scope": "ours is of the host, not of the device",
    "other_benchmarks": "the two are made of different benchmarks",
    "other_training": "our training is not known to be as long and on the same data as the published one",
    "other_batch": "the published rows ran at different batch sizes",
}
"""In words, why two figures do not compare."""

_PER_PARAMETER = ("ST_samples_per_param_s", "TT_tokens_per_param_s")
_OF_SCORES = ("average_performance", "MCR", "AL_sum_ms")
_OF_TRAINING = ("PPL", "loss", "FID")
_OF_BATCH = ("AL_s_per_iter", "AMU_GB")
_SAMPLES = "implied_samples_per_iter"
_PRETRAINING = ("table3", "table4", "table5", "table6")
_FINETUNING = ("table7", "table8", "table12", "table13")
_IMAGES = ("table10", "table11")


@dataclass(frozen=True)
class Ours:
    """One table of ours: its figures, the technique that the others are compared with, labels of its benchmarks."""

    sheet: Sheet
    baseline: str
    benchmarks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Line:
    kind: str
    table: str
    row: str
    against: str = ""
    column: str = ""
    better: str | None = None
    ours: Effect = NO_EFFECT
    published: Effect = NO_EFFECT
    provenance: str | None = None
    code: str | None = None
    note: str = ""


def comparison(
    ours: Mapping[str, Ours], published: Mapping[str, Sheet], paired: Paired = NOT_PAIRED
) -> list[dict[str, Any]]:
    """Rows of results/comparison.csv: figures and ratios of our tables' published counterparts, then all findings.

    `ours` and `published` are by table. A figure that we lack is None, with a code; an absolute figure compares on the
    published machine alone, a ratio within a table wherever both sides of it were measured alike.
    """
    found = findings(published)
    notes = _notes(found)
    # The paper's mean is over the benchmarks of its own Table 16.
    scores = published["table16"].better if "table16" in published else {}
    lines: list[_Line] = []
    for name, mine in ours.items():
        if name not in published:
            continue
        same_scores = bool(scores) and mine.benchmarks == frozenset(scores)
        for row, column in published[name].published:
            lines += _both(mine, published[name], row, column, same_scores, paired)
    rows = [_cells(replace(line, note=_joined(line, notes))) for line in lines]
    return rows + [_cells(_of_finding(finding)) for finding in found]


def _both(mine: Ours, published: Sheet, row: Names, column: str, same_scores: bool, paired: Paired) -> Iterator[_Line]:
    """The figure, and its ratio to the baseline's."""
    sheet = mine.sheet
    if column not in published.better:
        return
    own = _row(sheet, row)
    source = published.published[row, column]
    line = _Line("figure", sheet.name, " ".join(row), "", column, published.better[column], note=source.note)
    line = replace(line, provenance=source.code)
    yield _judged(line, *_figures(sheet, published, own, row, column), _why_not_figure(mine, own, column, same_scores))
    base, own_base = (_partner(side, mine.baseline, row) for side in (published, sheet))
    if base == row:
        return
    line = replace(line, kind="ratio", against=" ".join(base) if base else mine.baseline)
    if base is None:
        yield replace(line, code="no_baseline")
        return
    theirs = _ratio(published, NOT_PAIRED, row, base, column)
    if published.value(base, column) is None:
        theirs = Effect(None, code="not_recovered")
    if own is not None and own_base is None:
        yield replace(line, published=theirs, code="no_baseline")
        return
    change = _ratio(sheet, paired, own, own_base, column) if own and own_base else Effect(None, code="no_row")
    yield _judged(line, change, theirs, _why_not_ratio(mine, published, own, row, base, column, same_scores))


def _judged(line: _Line, ours: Effect, published: Effect, why_not: str | None) -> _Line:
    return replace(line, ours=ours, published=published, code=ours.code or published.code or why_not)


def _row(sheet: Sheet, names: Names) -> Names | None:
    """Our row of the same names, whatever their case and spaces."""
    wanted = [_plain(name) for name in names]
    return next((row for row in (*sheet.figures, *sheet.left_out) if [_plain(name) for name in row] == wanted), None)


def _partner(sheet: Sheet, technique: str, row: Names) -> Names | None:
    """The row of the baseline in the group of `row`, for neither side at another size."""
    group = _plain(sheet.group_of(row))
    for other in (*sheet.figures, *sheet.left_out):
        if _plain(sheet.technique_of(other)) == _plain(technique) and _plain(sheet.group_of(other)) == group:
            return other
    return None


def _plain(name: str) -> str:
    return "".join(name.casefold().split())


def _figures(sheet: Sheet, published: Sheet, own: Names | None, row: Names, column: str) -> tuple[Effect, Effect]:
    """Both sides; throughput per parameter times parameters, as the paper divides by nominal ones."""
    figure = published.figures[row][column]
    theirs = Effect(figure.value, _interval(figure))
    if own is None:
        return Effect(None, code="no_row"), theirs
    if own in sheet.left_out:
        return Effect(None, code="not_ok"), theirs
    found = sheet.value(own, column)
    if found is None:
        return Effect(None, code="not_measured"), theirs
    ours = Effect(found.value, _interval(found))
    if column not in _PER_PARAMETER:
        return ours, theirs
    sizes = sheet.sizes.get(own), published.sizes.get(row)
    if sizes[0] is None or sizes[1] is None:
        return replace(ours, code="no_size"), theirs
    return _times(ours, sizes[0] * 1e9), _times(theirs, sizes[1] * 1e9)


def _interval(figure: Figure) -> tuple[float, float] | None:
    return None if figure.low is None or figure.high is None else (figure.low, figure.high)


def _times(one: Effect, factor: float) -> Effect:
    if one.value is None:
        return one
    interval = (one.interval[0] * factor, one.interval[1] * factor) if one.interval else None
    return replace(one, value=one.value * factor, interval=interval)


def _ratio(sheet: Sheet, paired: Paired, row: Names, base: Names, column: str) -> Effect:
    found = effect(sheet, paired, row, base, column, "ratio")
    if column not in _PER_PARAMETER or found.value is None:
        return found
    sizes = sheet.sizes.get(row), sheet.sizes.get(base)
    return _times(found, sizes[0] / sizes[1]) if sizes[0] and sizes[1] else replace(found, code="no_size")


def _why_not_figure(mine: Ours, own: Names | None, column: str, same_scores: bool) -> str | None:
    sheet = mine.sheet
    if own is None:
        return "no_row"
    why_not = _why_not_either(mine, own, column, same_scores)
    is_cost = column in sheet.costs and column != "MCR"
    return why_not or (None if not is_cost or _is_published_machine(sheet, own) else "other_machine")


def _why_not_ratio(
    mine: Ours, published: Sheet, own: Names | None, row: Names, base: Names, column: str, same_scores: bool
) -> str | None:
    if own is None:
        return "no_row"
    samples = [published.figures[side].get(_SAMPLES) for side in (row, base) if side in published.figures]
    one, other = samples if len(samples) == 2 else (None, None)
    if column in _OF_BATCH and one and other and (one.lowest > other.highest or one.highest < other.lowest):
        return "other_batch"
    return _why_not_either(mine, own, column, same_scores)


def _why_not_either(mine: Ours, own: Names, column: str, same_scores: bool) -> str | None:
    """What concerns an absolute figure and a ratio alike."""
    cells = mine.sheet.cells.get(own, {})
    if column in _OF_SCORES and not same_scores:
        return "other_benchmarks"
    if column in _OF_TRAINING and not _is_whole_training(mine.sheet.name, cells):
        return "other_training"
    if column == "AMU_GB" and cells.get("AMU_scope") != "device":
        return "other_scope"
    if column == "AEC_W" and cells.get("energy_scope") != "gpu":
        return "other_scope"
    return None


def _is_whole_training(table: str, cells: Mapping[str, str | None]) -> bool:
    """Whether as many tokens were learned as the paper's; how long its other trainings were is not known."""
    try:
        return table in _PRETRAINING and float(cells.get("tokens_seen") or 0) >= TOKENS
    except ValueError:
        # Seeds of one row that saw differently many.
        return False


def _is_published_machine(sheet: Sheet, own: Names) -> bool:
    """48 GH200 for pretraining, 8 H200 for fine-tuning, one GH200 for precisions; on what images were learned is not
    known."""
    if sheet.name in _IMAGES:
        return False
    cells = sheet.cells.get(own, {})
    device, world = cells.get("device") or "", cells.get("world_size")
    if sheet.name in _FINETUNING:
        return re.search(r"\bH200\b", device) is not None and world == "8"
    is_gh200 = re.search(r"\bGH200\b", device) is not None
    return is_gh200 and (world == "48" or sheet.name not in _PRETRAINING)


def _notes(found: Sequence[Finding]) -> dict[tuple[str, str, str], list[str]]:
    notes: dict[tuple[str, str, str], list[str]] = {}
    for finding in found:
        notes.setdefault((finding.table, finding.row, finding.column), []).append(finding.message)
    return notes


def _joined(line: _Line, notes: Mapping[tuple[str, str, str], list[str]]) -> str:
    """The note of the published file, then what was found of this very figure."""
    own = notes.get((line.table, line.row, line.column), []) if line.kind == "figure" else []
    return "; ".join(text for text in (line.note, *own) if text)


def _of_finding(finding: Finding) -> _Line:
    return _Line("finding", finding.table, finding.row, "", finding.column, code=finding.rule, note=finding.message)


def _cells(line: _Line) -> dict[str, Any]:
    ours, published = (side.interval or (None, None) for side in (line.ours, line.published))
    is_comparable = line.kind != "finding" and line.code is None
    over = None
    if is_comparable and line.ours.value is not None and line.published.value:
        over = line.ours.value / line.published.value
    cells = (
        line.kind, line.table, line.row, line.against, line.column, line.better,
        line.ours.value, *ours, line.published.value, *published, line.provenance, over,
        None if line.kind == "finding" else "yes" if is_comparable else "no",
        line.code, REASONS.get(line.code or ""), line.note or None,
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))
