"""Tables of pretraining: architectures trained from random weights, one row per method and size."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from effllm.fields import Id, Text
from effllm.tables.columns.pretraining import PRETRAINING
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Nodes, Spec
from effllm.tables.kinds.methods import MethodRow, MethodTable, compared

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member


class PretrainingRow(MethodRow):
    """One architecture, trained once or under several seeds; what it was trained with is in its runs."""

    parameters: Text = Field(description="Nominal size, such as 0.5B; the real number of parameters stands beside it.")
    runs: Annotated[list[Id], Field(min_length=1)] = Field(
        description="Ids of pretraining runs; several are seeds of one configuration and make one row."
    )


class PretrainingTable(MethodTable):
    """A table with a row per architecture and size."""

    columns: ClassVar[Description] = PRETRAINING
    size: ClassVar[str] = "parameters"

    rows: Annotated[list[PretrainingRow], Field(min_length=1)] = Field(description="The rows, in order.")

    def check(self, study: "Study", where: str) -> None:
        self.check_runs(where, study.pretraining)

    def nodes(self, study: "Study") -> Nodes:
        return {"pretrain": self.runs()}

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.tables.pretraining import pretraining_table

        return pretraining_table(spec, inputs)

    @staticmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        """Against the baseline method at the same nominal size; where it has none, at the size that comes first."""
        from effllm.tables.artifacts import read_results
        from effllm.tables.items import items_of_pretraining
        from effllm.tables.members import Trained

        results = read_results("pretrain", inputs["pretrain"])
        for index, against, runs in compared(spec, PretrainingTable.size):
            yield Trained(index, against, items_of_pretraining([results[id] for id in runs]))
