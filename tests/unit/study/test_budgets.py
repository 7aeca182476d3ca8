"""Budgets of a study: limits that decide no result."""

from typing import Any

import pytest

from effllm.errors import UserError
from effllm.stages.graph import Graph
from effllm.study import parse_study


def test_a_budget_of_a_table_that_is_left_out_waits_for_it(tiny: dict[str, Any]) -> None:
    assert "table9" in tiny["budgets"]
    del tiny["tables"]["table9"]
    graph = Graph(parse_study(tiny, "test"))
    assert "table9" not in graph.tables() and "table9" in graph.budgets()


@pytest.mark.parametrize(
    ("table", "budget", "says"),
    [
        ("tabel9", {"max": {"memory_peak_GB": 1}}, "budgets.tabel9: there is no such table; did you mean 'table9'"),
        ("table9", {"max": {"memory_peek_GB": 1}}, "'memory_peek_GB' is no measured column.*'memory_peak_GB'"),
        ("table9", {"prefer": ["precision"]}, "'precision' is no measured column"),
        ("table9", {"quality_loss": -1}, "quality_loss"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(
    tiny: dict[str, Any], table: str, budget: dict[str, Any], says: str
) -> None:
    tiny["budgets"] = {table: budget}
    with pytest.raises(UserError, match=says):
        parse_study(tiny, "test")
