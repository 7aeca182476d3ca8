"""A recommendation for programs, as config/recommendation.schema.json describes it."""

from collections.abc import Mapping
from typing import Any

from effllm.decision.breakpoints import Breakpoint, Relaxation
from effllm.decision.budget import Limit
from effllm.decision.recommend import Judged, Recommendation, ScopeAnswer, why_no_result
from effllm.decision.recommend_text import first_line, sentence, why_not
from effllm.decision.rows import Figure, Row

FORMAT = 1
"""Raised when a key changes its meaning or goes."""


def plain(found: Recommendation) -> dict[str, Any]:
    """The whole answer as JSON types."""
    query = found.query
    names = found.table.description.names
    return {
        "format": FORMAT,
        "table": str(found.table.path),
        "about": found.table.description.title,
        "query": {
            "limits": [_limit(limit) for limit in query.limits],
            "quality_loss": query.quality_loss,
            "workload": query.workload,
            "model": query.model,
            "prefer": list(query.prefer),
            "margin": query.margin,
            "across_cards": query.across_cards,
        },
        "quality": found.quality,
        "costs": list(found.costs),
        "exit_code": found.exit_code,
        "answer": first_line(found),
        "differing": list(found.differing),
        "scopes": [_scope(found, answer) for answer in found.scopes],
        "no_result": [
            {
                "name": judged.name,
                "row": _names(names, judged.row),
                "status": judged.row.status,
                "why": why_no_result(found.table, judged.row, query.workload),
            }
            for judged in found.no_result
        ],
        "caveats": [{"code": caveat.code, "text": caveat.text} for caveat in found.caveats],
    }


def _scope(found: Recommendation, answer: ScopeAnswer) -> dict[str, Any]:
    return {
        "conditions": dict(answer.scope.conditions),
        "outcome": answer.outcome,
        "answer": sentence(found, answer),
        "recommended": [judged.name for judged in answer.recommended],
        "rows": [_row(found, judged) for judged in answer.rows],
        "breakpoints": [_breakpoint(found, point) for point in answer.breakpoints],
        "relaxations": [_relaxation(found, relaxation) for relaxation in answer.relaxations],
        "caveats": [{"code": caveat.code, "text": caveat.text} for caveat in answer.caveats],
    }


def _row(found: Recommendation, judged: Judged) -> dict[str, Any]:
    recommended = judged.verdict == "recommended"
    return {
        "name": judged.name,
        "row": _names(found.table.description.names, judged.row),
        "verdict": judged.verdict,
        "why_not": None if recommended else why_not(found.table, judged),
        "limits": [
            {
                **_limit(given.limit),
                "answer": given.answer,
                "figure": _figure(given.figure),
                "factor": given.factor,
                "reason": given.reason,
            }
            for given in judged.limits
        ],
        "figures": {name: _figure(figure) for name, figure in judged.figures.items()},
        "loss": (
            {
                "value": judged.loss.value,
                "low": judged.loss.low,
                "high": judged.loss.high,
                "paired": judged.loss.paired,
                "against": judged.loss_against,
            }
            if judged.loss
            else None
        ),
        "beaten_by": list(judged.beaten_by),
        "better_in": list(judged.better_in),
        "best_for": list(judged.best_for),
    }


def _breakpoint(found: Recommendation, point: Breakpoint) -> dict[str, Any]:
    return {
        "column": point.column,
        "kind": point.kind,
        "sign": point.sign,
        "bound": point.bound,
        "recommended": [found.names[row.name] for row in point.rows],
    }


def _relaxation(found: Recommendation, relaxation: Relaxation) -> dict[str, Any]:
    return {
        "limits": [_limit(limit) for limit in relaxation.limits],
        "factor": relaxation.factor,
        "recommended": [found.names[row.name] for row in relaxation.rows],
    }


def _limit(limit: Limit) -> dict[str, Any]:
    return {"column": limit.column, "kind": limit.kind, "bound": limit.bound}


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else {"value": figure.value, "low": figure.low, "high": figure.high}


def _names(columns: tuple[str, ...], row: Row) -> Mapping[str, str]:
    return dict(zip(columns, row.names, strict=True))
