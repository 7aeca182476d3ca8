"""Table 13: fine-tuning of models of images and videos, one row per pipeline and method of its suites."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from effllm.fields import PlainId, repeated, require
from effllm.tables.columns.tuning import TUNING
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Labelled, Nodes, Spec, Table

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member


class TuningTable(Table):
    """A table with a row per pipeline and method of suites that fine-tune on captions."""

    columns: ClassVar[Description] = TUNING

    suites: Annotated[list[PlainId], Field(min_length=1)] = Field(
        description="Ids of suites of tuning, which have the same methods and no pipeline in common."
    )
    baseline: PlainId | Literal[""] = Field(
        default="",
        description="Id of the method that the other rows of a pipeline are compared with; the first one if left out.",
    )

    def check(self, study: "Study", where: str) -> None:
        for suite in self.suites:
            require(f"{where}.suites", suite, study.tuning)
        first, *others = (study.tuning[suite] for suite in self.suites)
        for id, other in zip(self.suites[1:], others, strict=True):
            if other.methods != first.methods:
                raise ValueError(
                    f"{where}.suites: {id!r} has other methods than {self.suites[0]!r}, and rows are those of all "
                    "suites: give both the same"
                )
        if twice := repeated(model for suite in self.suites for model in study.tuning[suite].models):
            raise ValueError(
                f"{where}.suites: {twice[0]!r} is a model of two suites, whose rows would bear one name: list it in one"
            )
        if self.baseline:
            require(f"{where}.baseline", self.baseline, first.methods)

    def nodes(self, study: "Study") -> Nodes:
        return {"tune": [node for suite in self.suites for node in study.tuning[suite].nodes(suite)]}

    def content(self, study: "Study") -> dict[str, Any]:
        suites = [study.tuning[suite] for suite in self.suites]
        return {
            "config": {
                "rows": [
                    {"model": model, "method": method, "run": f"{model}.{id}.{method}", "captions": suite.captions}
                    for id, suite in zip(self.suites, suites, strict=True)
                    for model in suite.models
                    for method in suite.methods
                ]
            },
            "model_labels": {id: study.generators[id].label or id for suite in suites for id in suite.models},
            "method_labels": {id: study.methods[id].label or id for id in suites[0].methods},
        }

    def baseline_of(self, study: "Study") -> str:
        return self.baseline or study.tuning[self.suites[0]].methods[0]

    def baseline_label(self, study: "Study") -> str:
        baseline = self.baseline_of(study)
        return study.methods[baseline].label or baseline

    def labelled(self, study: "Study", where: str) -> Iterable[Labelled]:
        models = [model for suite in self.suites for model in study.tuning[suite].models]
        yield Labelled(f"{where}.suites", "generators", models, study.generators)
        yield Labelled(f"{where}.suites", "methods", study.tuning[self.suites[0]].methods, study.methods)

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.tables.tuning import tuning_table

        return tuning_table(spec, inputs)

    @staticmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        """Against the baseline method on the same pipeline."""
        from effllm.tables.artifacts import read_results
        from effllm.tables.items import items_of_tuning
        from effllm.tables.members import Trained

        results = read_results("tune", inputs["tune"])
        rows, baseline = spec["config"]["rows"], spec["baseline"]
        against = {row["model"]: index for index, row in enumerate(rows) if row["method"] == baseline}
        for index, row in enumerate(rows):
            yield Trained(index, against[row["model"]], items_of_tuning(results[row["run"]]))
