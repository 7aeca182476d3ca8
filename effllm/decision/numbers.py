"""Figures as people read them: four digits, ratios instead of large percentages."""

from effllm.decision.budget import Limit
from effllm.decision.rows import Figure
from effllm.tables.description import Column

_TWICE = 2.0


def number(value: float) -> str:
    """Four significant digits, thousands with commas."""
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def exact(value: float) -> str:
    """All digits that a table has, so that a limit made of it does what was said."""
    return f"{value:.6g}"


def per_cent(share: float) -> str:
    """A share of 1 as per cent."""
    return f"{100 * share:.3g} %"


def measured(figure: Figure) -> str:
    """A figure and its interval."""
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"


def with_unit(text: str, column: Column) -> str:
    """A text with the unit of its column, where that has one."""
    return f"{text} {column.unit}" if column.unit else text


def lost(value: float, column: Column) -> str:
    """A loss of quality: points of a fraction, per cent of other figures."""
    return f"{value:.3g} points" if column.points else f"{value:.3g} %"


def missed_by(limit: Limit, figure: Figure) -> str:
    """By how much a figure misses a limit: `3.2 times the limit`, `12 % over the limit`."""
    factor = limit.factor(figure.value)
    if factor is None or factor <= 0:
        return f"{number(abs(figure.value - limit.bound))} {'over' if limit.kind == 'max' else 'under'} the limit"
    if limit.kind == "max":
        return f"{factor:.3g} times the limit" if factor >= _TWICE else f"{per_cent(factor - 1)} over the limit"
    return f"{per_cent(1 - factor)} under the limit"


def changed_by(limit: Limit, bound: float) -> str:
    """How another bound compares with that of a limit: `4.61 times the limit`, `more by 17 %`, `less by 26 %`."""
    factor = limit.factor(bound)
    way = "more" if bound > limit.bound else "less"
    if factor is None or factor <= 0:
        return f"{way} by {number(abs(bound - limit.bound))}"
    return f"{factor:.3g} times the limit" if factor >= _TWICE else f"{way} by {per_cent(abs(factor - 1))}"
