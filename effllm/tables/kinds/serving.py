"""Models in their precisions under load: a row for each rate, with the largest rate that meets an objective."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from effllm.fields import PlainId, require
from effllm.serving.slo import Slo
from effllm.tables.columns.serving import SERVING
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Length, Nodes, Spec
from effllm.tables.kinds.scores import QuantizationTable, scored_members

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member


class ServingTable(QuantizationTable):
    """A table with a row per model, load and precision."""

    columns: ClassVar[Description] = SERVING

    benchmarks: list[PlainId] = Field(
        default=[], description="Benchmark ids whose mean is the quality of a row; none judges costs alone."
    )
    serving: PlainId = Field(description="How models are served, an id of the section serving.")
    slo: Slo | None = Field(default=None, description="What requests are promised; null gives no goodput.")

    def check(self, study: "Study", where: str) -> None:
        super().check(study, where)
        require(f"{where}.serving", self.serving, study.serving)

    def nodes(self, study: "Study") -> Nodes:
        variants = self.variants
        return super().nodes(study) | {
            "quantize": variants,
            "serve": [f"{variant}.{self.serving}" for variant in variants],
        }

    def content(self, study: "Study") -> dict[str, Any]:
        return super().content(study) | {"loads": study.serving[self.serving].load_ids()}

    def lengths(self, study: "Study") -> Iterable[Length]:
        for model in self.models:
            yield Length(model, f"serving.{self.serving}.load", study.serving[self.serving].load.longest)
        yield from super().lengths(study)

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.tables.serving import serving_table

        return serving_table(spec, inputs)

    @staticmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        """Against the baseline precision of the same model under the same load."""
        scored = list(scored_members(spec, inputs, {id: f"{id}_score" for id in spec["config"]["benchmarks"]}))
        precisions, loads = len(spec["config"]["precisions"]), len(spec["loads"])
        # A model's rows are load by load, precisions within each.
        for model in range(0, len(scored), precisions):
            for load in range(loads):
                first = model * loads + load * precisions
                for member in scored[model : model + precisions]:
                    yield replace(member, index=first + member.index - model, against=first + member.against - model)
