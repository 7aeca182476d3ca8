"""Budgets: what a recommendation from a table must respect. They decide no result and are in no node's spec."""

from typing import Annotated

from pydantic import Field

from effllm.fields import Float, Section, Text, suggestion
from effllm.tables.descriptions import DESCRIPTIONS

_MEASURED = ("quality", "cost")


class Budget(Section):
    """The limits of one table, under the names of the options of `effllm recommend`."""

    max: dict[Text, Float] = Field(
        default_factory=dict, description="Highest admitted value by column, in its unit, such as memory_peak_GB."
    )
    min: dict[Text, Float] = Field(
        default_factory=dict, description="Lowest admitted value by column, such as average_performance."
    )
    quality_loss: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="How much worse than the best a quality may surely be, in points or per cent."
    )
    prefer: list[Text] = Field(
        default_factory=list, description="Columns by which to choose among what is left, in order."
    )
    margin: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Share by which two costs must differ to count as different."
    )
    workload: Text | None = Field(default=None, description="Workload whose costs count; the table's own if left out.")
    model: Text | None = Field(default=None, description="The one model to choose for; all if left out.")


def check_budgets(budgets: dict[str, Budget]) -> None:
    """ValueError for what is no table, and for a column that its table cannot have.

    Budgets of tables that the study does not define wait for them: studies inherit budgets, and may leave tables out.
    """
    for name, budget in budgets.items():
        if name not in DESCRIPTIONS:
            raise ValueError(f"budgets.{name}: there is no such table; {suggestion(name, list(DESCRIPTIONS))}")
        description = DESCRIPTIONS[name]
        known = [column.name for column in description.declared if column.role in _MEASURED and "*" not in column.name]
        for key in ("max", "min", "prefer"):
            for column in getattr(budget, key):
                found = description.columns([column]).get(column)
                # Columns of Table 16 are named by labels, which the table alone knows.
                if found is None and description.unfold is not None:
                    continue
                if found is None or found.role not in _MEASURED:
                    raise ValueError(
                        f"budgets.{name}.{key}: {column!r} is no measured column of {name}; {suggestion(column, known)}"
                    )
