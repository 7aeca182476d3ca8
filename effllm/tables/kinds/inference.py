"""Table 9: models in their precisions, with figures of the fixed workloads."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from effllm.fields import PlainId, require
from effllm.tables.columns.quantization import QUANTIZATION
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Length, Nodes, Spec
from effllm.tables.kinds.scores import QuantizationTable, scored_members

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member


class InferenceTable(QuantizationTable):
    """Table 9: a table of precisions with figures of the fixed workloads."""

    columns: ClassVar[Description] = QUANTIZATION

    workload: PlainId = Field(
        default="single", description="Workload of the paper's columns; the others stand beside it."
    )

    def check(self, study: "Study", where: str) -> None:
        super().check(study, where)
        require(f"{where}.workload", self.workload, study.inference.workloads)

    def nodes(self, study: "Study") -> Nodes:
        return super().nodes(study) | {"quantize": self.variants, "profile": self.variants}

    def lengths(self, study: "Study") -> Iterable[Length]:
        for model in self.models:
            for id, workload in study.inference.workloads.items():
                key = f"inference.workloads.{id}: prompt and new tokens"
                yield Length(model, key, workload.prompt_tokens + workload.new_tokens)
        yield from super().lengths(study)

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.tables.quantization import table9

        return table9(spec, inputs)

    @staticmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        return scored_members(spec, inputs, {id: f"{id}_score" for id in spec["config"]["benchmarks"]})
