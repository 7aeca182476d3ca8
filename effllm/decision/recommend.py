"""`effllm recommend`: the answer of a table to a question, with the reasons for and against each of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from effllm.decision.breakpoints import Breakpoint, Relaxation, breakpoints, relaxations
from effllm.decision.budget import Answer, Limit, answer_to_all
from effllm.decision.caveats import Caveat, caveats_of_scope, caveats_of_table
from effllm.decision.choice import Choice, Field, Outcome, Rules
from effllm.decision.dominance import members
from effllm.decision.loss import Loss, read_pairs
from effllm.decision.query import CARD, Query, of_subject, short_names, workload_column
from effllm.decision.rows import Figure, Row, Table
from effllm.decision.scope import Scope, differing, scopes

Verdict = Literal[
    "recommended",
    "exceeds",
    "too close to call",
    "not measured",
    "loses quality",
    "beaten",
    "not preferred",
    "no result",
]
"""Why a row is or is not recommended. no result: its status is not ok, so that none of its figures counts."""
EXIT_NOTHING_FITS = 3
EXIT_UNDECIDED = 4
_ANSWERED: tuple[Outcome, ...] = ("one", "several")


@dataclass(frozen=True)
class LimitAnswer:
    """What one row says to one limit. factor: its figure over the limit. reason: why it has no figure."""

    limit: Limit
    answer: Answer
    figure: Figure | None
    factor: float | None
    reason: str | None


@dataclass(frozen=True)
class Judged:
    """One row and its verdict.

    name: in short. figures: by cost and quality, None where not measured. loss: in quality against `loss_against`.
    beaten_by: the rows that beat it, of which the first one surely does in the columns `better_in`. best_for: the
    columns in which it leads those that are recommended.
    """

    row: Row
    name: str
    verdict: Verdict
    limits: tuple[LimitAnswer, ...] = ()
    figures: dict[str, Figure | None] = field(default_factory=dict)
    loss: Loss | None = None
    loss_against: str | None = None
    beaten_by: tuple[str, ...] = ()
    better_in: tuple[str, ...] = ()
    best_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScopeAnswer:
    """The answer within one group of comparable rows."""

    scope: Scope
    outcome: Outcome
    rows: tuple[Judged, ...]
    breakpoints: tuple[Breakpoint, ...]
    relaxations: tuple[Relaxation, ...]
    caveats: tuple[Caveat, ...]

    @property
    def recommended(self) -> list[Judged]:
        """The rows to take one of."""
        return [judged for judged in self.rows if judged.verdict == "recommended"]


@dataclass(frozen=True)
class Recommendation:
    """The answer of a table.

    costs, quality: the columns that decided. no_result: rows whose figures do not count. differing: the conditions by
    which the groups differ.
    """

    table: Table
    query: Query
    costs: tuple[str, ...]
    quality: str | None
    scopes: tuple[ScopeAnswer, ...]
    no_result: tuple[Judged, ...]
    differing: tuple[str, ...]
    caveats: tuple[Caveat, ...]
    names: dict[str, str]

    @property
    def answered(self) -> list[ScopeAnswer]:
        """The groups that have an answer."""
        return [answer for answer in self.scopes if answer.outcome in _ANSWERED]

    @property
    def compares_nothing(self) -> bool:
        """Whether every row is alone in its group."""
        return len(self.scopes) > 1 and all(len(answer.rows) == 1 for answer in self.scopes)

    @property
    def exit_code(self) -> int:
        """0 with an answer, 3 where nothing fits, 4 where that, or which, cannot be decided."""
        if self.answered and not self.compares_nothing:
            return 0
        outcomes = {answer.outcome for answer in self.scopes}
        return EXIT_NOTHING_FITS if outcomes == {"nothing fits"} else EXIT_UNDECIDED


def recommend(table: Table, query: Query, is_paired: bool = True) -> Recommendation:
    """Answer a question that `effllm.decision.query` has checked against the table.

    is_paired: whether the pairs next to the table, where they are, give the losses of quality.
    """
    pairs = read_pairs(table) if is_paired else {}
    asked = of_subject(table, query.model) if query.model else list(table.rows)
    table = replace(table, rows=tuple(asked))
    names = dict(short_names(table))
    counting = [row for row in asked if _result_of(table, row, query.workload) is None]
    costs = _costs(table, query)
    quality = table.description.quality
    ignored = (CARD,) if query.across_cards else ()
    found = scopes(table, counting, ignored)
    rules = Rules(query.limits, quality, query.quality_loss, costs, query.margin, query.prefer, pairs)
    answers = tuple(_answer(table, scope, rules, names) for scope in found)
    left_out = [row for row in asked if row not in counting]
    return Recommendation(
        table,
        query,
        costs,
        quality,
        answers,
        tuple(Judged(row, names[row.name], "no result") for row in left_out),
        tuple(differing(found)),
        tuple(caveats_of_table(table, query, counting)),
        names,
    )


def why_no_result(table: Table, row: Row, workload: str | None) -> str:
    """The status and reason of a row that does not count."""
    return _result_of(table, row, workload) or ""


def _result_of(table: Table, row: Row, workload: str | None) -> str | None:
    """Why no figure of a row counts; None where they do."""
    if row.status != "ok":
        return f"{row.status}: {row.reason}" if row.reason else row.status
    if workload is None:
        return None
    status = row.cells.get(workload_column(table, "status", workload))
    return None if status == "ok" else f"workload {workload} is {status}: validity.csv has the reason"


def _costs(table: Table, query: Query) -> tuple[str, ...]:
    """The table's costs of the asked workload, and every cost that the user names: those that some column tells of."""
    description = table.description
    own = description.workload_costs if query.workload else description.costs
    listed = [workload_column(table, name, query.workload) for name in own]
    named = [limit.column for limit in query.limits] + list(query.prefer)
    listed += [name for name in named if table.columns[name].role == "cost" and table.direction(name)]
    return tuple(dict.fromkeys(name for name in listed if name in table.columns))


def _answer(table: Table, scope: Scope, rules: Rules, names: dict[str, str]) -> ScopeAnswer:
    decided = Field(table, scope.rows, rules)
    choice = decided.choose(decided.fitting(rules.limits))
    outcome = decided.outcome(choice)
    best_for = decided.best_for(choice.chosen)
    judged = tuple(_judge(decided, choice, i, best_for.get(i, []), names) for i in range(len(scope.rows)))
    return ScopeAnswer(
        scope,
        outcome,
        judged,
        tuple(breakpoints(decided)) if choice.fitting else (),
        tuple(relaxations(decided)) if not choice.fitting else (),
        tuple(caveats_of_scope(decided, choice, names)),
    )


def _judge(decided: Field, choice: Choice, i: int, best_for: Sequence[str], names: dict[str, str]) -> Judged:
    row = decided.rows[i]
    limits = tuple(_limit_answer(limit, answer, row) for limit, answer in decided.answers(row).items())
    shown = [*decided.costs, *([decided.quality] if decided.quality else [])]
    figures = {name: row.figures.get(name) for name in dict.fromkeys(shown)}
    judged = Judged(row, names[row.name], _verdict(decided, choice, i), limits, figures)
    if choice.best is not None and choice.best != i:
        judged = replace(judged, loss=decided.loss(i, choice.best), loss_against=names[decided.rows[choice.best].name])
    if judged.verdict == "beaten":
        # Whoever is recommended is the better witness.
        beating = decided.beaten_by[i] & choice.good
        first = members(beating & choice.chosen) or members(beating & choice.unbeaten) or members(beating)
        ordered = first + [j for j in members(beating) if j not in first]
        better_in = [name for name in decided.costs if decided.order(name).surely_better[i] >> first[0] & 1]
        judged = replace(
            judged, beaten_by=tuple(names[decided.rows[j].name] for j in ordered), better_in=tuple(better_in)
        )
    if judged.verdict == "not preferred":
        column, winners = _preferred_to(decided, choice.unbeaten, i)
        judged = replace(judged, beaten_by=tuple(names[decided.rows[j].name] for j in winners), better_in=(column,))
    return replace(judged, best_for=tuple(best_for))


def _verdict(decided: Field, choice: Choice, i: int) -> Verdict:
    bit = 1 << i
    if not choice.fitting & bit:
        answer = answer_to_all(decided.answers(decided.rows[i]).values())
        assert answer != "fits"
        return answer
    if not choice.good & bit:
        return "not measured" if decided.quality not in decided.rows[i].figures else "loses quality"
    if not choice.unbeaten & bit:
        return "beaten"
    return "recommended" if choice.chosen & bit else "not preferred"


def _preferred_to(decided: Field, rows: int, i: int) -> tuple[str, list[int]]:
    """The first preferred column in which a row loses, and the rows that are best there."""
    for column in decided.rules.preferred:
        order = decided.order(column)
        best = order.best(rows)
        if order.surely_better[i] & best:
            return column, members(best)
        rows = sum(1 << j for j in members(rows) if not order.surely_better[j] & best)
    raise ValueError(f"row {i} loses in no preferred column")


def _limit_answer(limit: Limit, answer: Answer, row: Row) -> LimitAnswer:
    figure = row.figures.get(limit.column)
    factor = limit.factor(figure.value) if figure else None
    return LimitAnswer(limit, answer, figure, factor, None if figure else row.why_missing(limit.column))
