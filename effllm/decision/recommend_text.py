"""A recommendation for people: the answer in the first line, then why, why not, where it changes, and what to mind."""

from collections import Counter
from collections.abc import Iterator, Sequence

from effllm.decision.breakpoints import Breakpoint, Relaxation
from effllm.decision.budget import Limit
from effllm.decision.numbers import changed_by, exact, lost, measured, missed_by, number, with_unit
from effllm.decision.query import explained
from effllm.decision.recommend import Judged, LimitAnswer, Recommendation, ScopeAnswer, why_no_result
from effllm.decision.rows import Table

_MOST_ROWS = 20
_MOST_GROUPS = 4
_INDENT = "  "


def text_of(found: Recommendation) -> str:
    """The whole answer, ending in a newline."""
    lines = [first_line(found)]
    for answer in found.scopes:
        lines += _block(found, answer)
    if found.no_result:
        lines += ["", "No result"]
        lines += _listed([(j.name, why_no_result(found.table, j.row, found.query.workload)) for j in found.no_result])
    if found.query.explain is not None:
        lines += _explained(found, found.query.explain)
    caveats = [caveat.text for answer in found.scopes for caveat in answer.caveats]
    caveats = list(dict.fromkeys([*caveats, *(caveat.text for caveat in found.caveats)]))
    if caveats:
        lines += ["", "Mind"]
        lines += [f"{_INDENT}- {text}" for text in caveats]
    return "\n".join(lines) + "\n"


def first_line(found: Recommendation) -> str:
    """The answer in one sentence."""
    if not found.scopes:
        return f"Not decidable: none of the {len(found.no_result)} rows has a result that counts."
    if len(found.scopes) == 1:
        return sentence(found, found.scopes[0])
    conditions = ", ".join(found.differing)
    if found.compares_nothing:
        remedy = "; --across-cards compares cards of one kind" if "device_id" in found.differing else ""
        return f"Not decidable: no two rows compare, for each differs from the others in {conditions}{remedy}."
    if len(found.answered) == 1:
        (only,) = found.answered
        return f"{sentence(found, only)[:-1]} ({_of(found, only)}; the other groups of rows have no answer)."
    count = len(found.scopes)
    if not found.answered:
        outcome = "Nothing fits" if found.exit_code == 3 else "Nothing can be decided"
        return f"{outcome} in any of {count} groups of rows, which do not compare ({conditions})."
    if count > _MOST_GROUPS:
        return f"{len(found.answered)} answers, for {count} groups of rows that do not compare ({conditions})."
    return f"No single answer, as rows compare only within one {conditions}: {'; '.join(_short_answers(found))}."


def _short_answers(found: Recommendation) -> Iterator[str]:
    for answer in found.scopes:
        names = [row.name for row in answer.recommended]
        what = {"one": " ".join(names[:1]), "several": f"{len(names)} rows left"}.get(answer.outcome, answer.outcome)
        yield f"{_of(found, answer)}: {what}"


def sentence(found: Recommendation, answer: ScopeAnswer) -> str:
    """The answer of one group in one sentence."""
    rows = answer.recommended
    fitting = sum(
        judged.verdict in ("recommended", "beaten", "loses quality", "not preferred") for judged in answer.rows
    )
    if answer.outcome == "one":
        return f"Take {rows[0].name}: {_why_one(found, answer, fitting)}."
    if answer.outcome == "several":
        return f"{len(rows)} rows are left, by what counts most: {_leaders(found, rows)}."
    if answer.outcome == "not decided":
        names = _all_of([row.name for row in rows])
        columns = _all_of([found.table.columns[column].text for column in found.query.prefer])
        return f"Not decided between {names}: {columns} cannot tell them apart."
    easiest = answer.relaxations[0] if answer.relaxations else None
    if answer.outcome == "nothing fits":
        return f"Nothing fits. {_relaxed(found, easiest)}" if easiest else "Nothing fits."
    close = [judged for judged in answer.rows if judged.verdict == "too close to call"]
    if close:
        unsure = next(given for given in close[0].limits if given.answer == "too close to call")
        what = f"{close[0].name} is too close to call ({_limit_text(found.table, unsure)})"
    else:
        unknown = next(judged for judged in answer.rows if judged.verdict == "not measured")
        lacking = [given for given in unknown.limits if given.answer == "not measured"]
        what = f"{lacking[0].limit.column} was not measured ({lacking[0].reason})" if lacking else unknown.name
    return f"Not decidable: no row surely fits, and {what}."


def _why_one(found: Recommendation, answer: ScopeAnswer, fitting: int) -> str:
    total = len(answer.rows)
    if total == 1:
        return "the only row, so there was nothing to choose" if not found.query.limits else "the only row, and it fits"
    if fitting == 1:
        return f"of {total} rows it alone fits"
    if any(judged.verdict == "not preferred" for judged in answer.rows):
        decisive = {
            column for judged in answer.rows if judged.verdict == "not preferred" for column in judged.better_in
        }
        columns = ", then in ".join(column for column in found.query.prefer if column in decisive)
        return f"the best in {columns} of those that nothing beats"
    within = f"{fitting} of {total} rows fit, and of these" if found.query.limits else f"of {total} rows"
    verdicts = {judged.verdict for judged in answer.rows}
    why = [
        *(["beaten"] if "beaten" in verdicts else []),
        *(["worse in quality"] if "loses quality" in verdicts else []),
    ]
    return f"{within} {'the other is' if fitting == 2 else 'all others are'} {' or '.join(why)}"


def _leaders(found: Recommendation, rows: Sequence[Judged]) -> str:
    by_rows: dict[tuple[str, ...], list[str]] = {}
    for column in found.costs:
        leading = tuple(row.name for row in rows if column in row.best_for)
        if leading:
            by_rows.setdefault(leading, []).append(found.table.columns[column].text)
    parts = []
    for leading, columns in by_rows.items():
        shown = list(leading[:3]) + ([f"{len(leading) - 3} more"] if len(leading) > 3 else [])
        parts.append(f"{' or '.join(shown)} for {_all_of(columns)}")
    named = {name for leading in by_rows for name in leading}
    others = [row.name for row in rows if row.name not in named]
    if others:
        shown = others[:3] + ([f"{len(others) - 3} more"] if len(others) > 3 else [])
        parts.append(f"{_all_of(shown)}, which {'nothing tells apart' if not named else 'no other beats'}")
    return "; ".join(parts)


def _block(found: Recommendation, answer: ScopeAnswer) -> Iterator[str]:
    several = len(found.scopes) > 1
    if several:
        yield ""
        yield f"{_of(found, answer)}: {sentence(found, answer)}"
    taken = answer.recommended
    if taken:
        yield ""
        width = max(len(judged.name) for judged in taken[:_MOST_ROWS])
        yield "Recommended" if len(taken) == 1 else "Left to choose from, by a limit or --prefer"
        for judged in taken[:_MOST_ROWS]:
            yield f"{_INDENT}{judged.name:{width}}  {_figures(found.table, judged)}"
        if len(taken) > _MOST_ROWS:
            yield f"{_INDENT}and {len(taken) - _MOST_ROWS} more: --json has them all"
    others = [judged for judged in answer.rows if judged.verdict != "recommended"]
    if others:
        yield ""
        yield "Why not"
        kinds = Counter(judged.verdict for judged in others[_MOST_ROWS:])
        more = ", ".join(f"{count} {verdict}" for verdict, count in kinds.most_common())
        yield from _listed([(judged.name, why_not(found.table, judged)) for judged in others], f" ({more})")
    if answer.breakpoints:
        yield ""
        yield "It changes"
        for point in answer.breakpoints:
            yield f"{_INDENT}{_breakpoint(found, point)}"
    if len(answer.relaxations) > 1 or (answer.relaxations and answer.outcome != "nothing fits"):
        yield ""
        yield "What would fit"
        for relaxation in answer.relaxations:
            yield f"{_INDENT}{_relaxed(found, relaxation)}"


def why_not(table: Table, judged: Judged) -> str:
    """Why one row of a group is not recommended."""
    failing = [given for given in judged.limits if given.answer != "fits"]
    if failing:
        return "; ".join(_limit_text(table, given) for given in failing)
    quality = table.columns[table.description.quality]
    if judged.verdict == "not measured":
        return f"{quality.text} was not measured ({judged.row.why_missing(quality.name)})"
    if judged.verdict == "loses quality" and judged.loss:
        at = judged.loss
        span = f"{number(at.low)} to {lost(at.high, quality)}"
        return f"loses {lost(at.value, quality)} of {quality.text} ({span}) against {judged.loss_against}"
    by = judged.beaten_by[0]
    more = f" and {len(judged.beaten_by) - 1} more" if len(judged.beaten_by) > 1 else ""
    columns = _all_of([table.columns[name].text for name in judged.better_in])
    if judged.verdict == "not preferred":
        return f"{by} is surely better in {columns}"
    return f"beaten by {by}{more}: surely in {columns}, and it is ahead in no cost"


def _limit_text(table: Table, given: LimitAnswer) -> str:
    column, limit = table.columns[given.limit.column], given.limit
    if given.figure is None:
        return f"{column.name} was not measured ({given.reason})"
    figure = f"{column.name} {with_unit(measured(given.figure), column)}"
    if given.answer == "exceeds":
        return f"{figure} is {missed_by(limit, given.figure)} ({exact(limit.bound)})"
    if given.answer == "too close to call":
        return f"{figure} is on both sides of the limit, {exact(limit.bound)}"
    return f"{figure} is within {exact(limit.bound)}"


def _figures(table: Table, judged: Judged) -> str:
    parts = []
    for name, figure in judged.figures.items():
        column = table.columns[name]
        if figure is not None:
            parts.append(f"{column.text} {with_unit(measured(figure), column)}")
    return " · ".join(parts)


def _breakpoint(found: Recommendation, point: Breakpoint) -> str:
    names = [found.names[row.name] for row in point.rows]
    shown = names[:4] + ([f"{len(names) - 4} more"] if len(names) > 4 else [])
    becomes = _all_of(shown) if names else "nothing fits"
    return f"when --{point.kind} {point.column} is {point.sign} {exact(point.bound)}: {becomes}"


def _relaxed(found: Recommendation, relaxation: Relaxation) -> str:
    old = {(limit.column, limit.kind): limit for limit in found.query.limits}
    changes = [_change(old[limit.column, limit.kind], limit) for limit in relaxation.limits]
    names = [found.names[row.name] for row in relaxation.rows]
    return f"With {_all_of(changes)}: {_all_of(names)}."


def _change(old: Limit, new: Limit) -> str:
    return f"--{new.kind} {new.column}={exact(new.bound)} instead of {exact(old.bound)} ({changed_by(old, new.bound)})"


def _explained(found: Recommendation, text: str) -> Iterator[str]:
    wanted = {row.name for row in explained(found.table.rows, text)}
    for answer in found.scopes:
        for judged in answer.rows:
            if judged.row.name in wanted:
                yield from ("", f"{judged.name}: {judged.verdict}")
                yield from (f"{_INDENT}{line}" for line in _explanation(found, answer, judged))
    for judged in found.no_result:
        if judged.row.name in wanted:
            yield from ("", f"{judged.name}: {why_no_result(found.table, judged.row, found.query.workload)}")


def _explanation(found: Recommendation, answer: ScopeAnswer, judged: Judged) -> Iterator[str]:
    table = found.table
    for given in judged.limits:
        yield f"limit: {_limit_text(table, given)}"
    quality = table.columns[table.description.quality]
    if judged.loss is not None:
        at = judged.loss
        how = "on the same items" if at.paired else "by both intervals"
        yield (
            f"{quality.text}: {lost(at.value, quality)} less than {judged.loss_against} "
            f"({number(at.low)} to {lost(at.high, quality)}, {how})"
        )
    for name, figure in judged.figures.items():
        column = table.columns[name]
        if figure is None:
            yield f"{column.text}: not measured ({judged.row.why_missing(name)})"
            continue
        others = [
            f"{other.name} {number(own.value)}"
            for other in answer.recommended[:3]
            if other is not judged and (own := other.figures.get(name))
        ]
        yield f"{column.text}: {with_unit(measured(figure), column)}" + (f"; {', '.join(others)}" if others else "")
    if judged.verdict not in ("recommended", "exceeds", "too close to call"):
        yield f"so: {why_not(table, judged)}"


def _listed(rows: Sequence[tuple[str, str]], more: str = "") -> Iterator[str]:
    width = max(len(name) for name, _ in rows[:_MOST_ROWS])
    for name, why in rows[:_MOST_ROWS]:
        yield f"{_INDENT}{name:{width}}  {why}"
    if len(rows) > _MOST_ROWS:
        yield f"{_INDENT}and {len(rows) - _MOST_ROWS} more{more}: --explain NAME tells of one, --json of all"


def _of(found: Recommendation, answer: ScopeAnswer) -> str:
    return ", ".join(f"{name} {answer.scope.conditions[name] or 'not stated'}" for name in found.differing)


def _all_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
