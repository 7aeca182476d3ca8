"""What a table decides under the study's budgets: the first lines of the page, and the reasons below them."""

from collections.abc import Mapping
from typing import Any

from effllm.decision.budget import Kind
from effllm.decision.query import MARGIN, Query, check_workload, parse_limits, resolve
from effllm.decision.recommend import Recommendation, recommend
from effllm.decision.recommend_text import first_line, sentence, text_of, why_no_result, why_not
from effllm.decision.rows import Table
from effllm.report.blocks import Answer, Block, Bullets, Heading, Text, Transcript
from effllm.report.rows import capital
from effllm.report.sliders import limits_text

_MOST_REASONS = 30


def decide(table: Table, budget: Mapping[str, Any], is_paired: bool) -> Recommendation:
    """The recommendation under a budget, as `effllm.study.budgets.Budget` has it; `UserError` where it does not fit.

    is_paired: whether the report has the pairs of the table.
    """
    kinds: tuple[Kind, ...] = ("max", "min")
    limits = [(kind, f"{column}={bound!r}") for kind in kinds for column, bound in budget.get(kind, {}).items()]
    workload = budget.get("workload")
    if workload:
        check_workload(table, workload)
    margin, loss = budget.get("margin"), budget.get("quality_loss")
    query = Query(
        limits=parse_limits(table, limits, workload),
        quality_loss=0.0 if loss is None else loss,
        workload=workload,
        model=budget.get("model"),
        prefer=tuple(resolve(table, name, workload, "budgets") for name in budget.get("prefer", ())),
        margin=MARGIN if margin is None else margin,
    )
    return recommend(table, query, is_paired)


def answer_of(found: Recommendation, heading: str, anchor: str) -> Answer:
    """The answer of a table in a line, with its budgets and the first thing to mind."""
    return Answer(heading, anchor, first_line(found), [_budgets(found)], found.exit_code == 0)


def decision_blocks(found: Recommendation, name: str) -> list[Block]:
    """The answer of every group of comparable rows, why not the others, and what to mind."""
    blocks: list[Block] = [Heading(f"{name}-decision", "Recommendation"), Text(_budgets(found))]
    for answer in found.scopes:
        conditions = ", ".join(
            f"{condition.replace('_', ' ')} {answer.scope.conditions[condition] or 'not stated'}"
            for condition in found.differing
        )
        blocks.append(
            Text(f"{capital(conditions)}: {sentence(found, answer)}" if conditions else sentence(found, answer))
        )
        others = [judged for judged in answer.rows if judged.verdict != "recommended"]
        reasons = [f"Not {judged.name}: {why_not(found.table, judged)}." for judged in others[:_MOST_REASONS]]
        if len(others) > _MOST_REASONS:
            reasons.append(f"{len(others) - _MOST_REASONS} more are not recommended; the answer below counts them.")
        if reasons:
            blocks.append(Bullets(reasons))
    excluded = [
        f"Not {judged.name}: {why_no_result(found.table, judged.row, found.query.workload)}."
        for judged in found.no_result[:_MOST_REASONS]
    ]
    if excluded:
        blocks.append(Bullets(excluded))
    caveats = dict.fromkeys(
        caveat.text for source in (*(answer.caveats for answer in found.scopes), found.caveats) for caveat in source
    )
    if caveats:
        blocks.append(Text("To be kept in mind:"))
        blocks.append(Bullets([f"{capital(text.rstrip('.'))}." for text in caveats]))
    blocks.append(Transcript("The whole answer, with the budgets at which it changes", text_of(found)))
    return blocks


def beaten_rows(found: Recommendation) -> set[int]:
    """Numbers of the rows that another row surely beats."""
    return {judged.row.number for answer in found.scopes for judged in answer.rows if judged.verdict == "beaten"}


def limits_of(found: Recommendation) -> dict[str, float]:
    """The budgets by column."""
    return {limit.column: limit.bound for limit in found.query.limits}


def _budgets(found: Recommendation) -> str:
    limits = limits_text(limits_of(found), found.table)
    if not limits:
        return "The study sets no budget for this table (key budgets), so every valid row fits."
    return f"Under the study's budgets: {'; '.join(limits)}."
