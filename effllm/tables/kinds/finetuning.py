"""Tables of fine-tuning: one row per base model and method of a suite."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effllm.fields import PlainId, require
from effllm.tables.columns.finetuning import FINETUNING
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Labelled, Nodes, Spec, Table

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member


class FinetuningTable(Table):
    """A table with a row per base model and method of a suite."""

    columns: ClassVar[Description] = FINETUNING

    suite: PlainId = Field(description="Id of the fine-tuning suite.")
    baseline: PlainId | Literal[""] = Field(
        default="",
        description="Id of the method that the other rows of a model are compared with; the suite's first if left out.",
    )

    def check(self, study: "Study", where: str) -> None:
        require(f"{where}.suite", self.suite, study.finetuning)
        if self.baseline:
            require(f"{where}.baseline", self.baseline, study.finetuning[self.suite].methods)

    def nodes(self, study: "Study") -> Nodes:
        return {"finetune": study.finetuning[self.suite].nodes(self.suite)}

    def content(self, study: "Study") -> dict[str, Any]:
        suite = study.finetuning[self.suite]
        return {
            "config": self._cells(study),
            "model_labels": {id: study.models[id].label or id for id in suite.models},
            "method_labels": {id: study.methods[id].label or id for id in suite.methods},
        }

    def baseline_of(self, study: "Study") -> str:
        return self.baseline or study.finetuning[self.suite].methods[0]

    def baseline_label(self, study: "Study") -> str:
        baseline = self.baseline_of(study)
        return study.methods[baseline].label or baseline

    def models_behind(self, study: "Study") -> list[str]:
        return study.finetuning[self.suite].models

    def rules(self, study: "Study", name: str) -> dict[str, dict[str, Any]]:
        return {"suites": {self.suite: self._cells(study)}}

    def labelled(self, study: "Study", where: str) -> Iterable[Labelled]:
        suite = study.finetuning[self.suite]
        yield Labelled(f"finetuning.{self.suite}.models", "models", suite.models, study.models)
        yield Labelled(f"finetuning.{self.suite}.methods", "methods", suite.methods, study.methods)

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.tables.finetuning import finetuning_table

        return finetuning_table(spec, inputs)

    @staticmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        """Against the baseline method on the same base model."""
        from effllm.tables.artifacts import read_results
        from effllm.tables.items import items_of_finetuning
        from effllm.tables.members import Trained

        results = read_results("finetune", inputs["finetune"])
        suite, baseline = spec["config"], spec["baseline"]
        methods = suite["methods"]
        for index, (model, method) in enumerate(product(suite["models"], methods)):
            against = index - methods.index(method) + methods.index(baseline)
            result = results[f"{model}.{suite['suite']}.{method}"]
            yield Trained(index, against, items_of_finetuning(result))

    def _cells(self, study: "Study") -> dict[str, Any]:
        suite = study.finetuning[self.suite]
        return {"suite": self.suite, "models": suite.models, "methods": suite.methods}
