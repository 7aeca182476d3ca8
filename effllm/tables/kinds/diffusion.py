"""Tables 10 and 11: diffusion transformers, one row per model and technique."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from effllm.fields import Id, PlainId, Text, require
from effllm.tables.columns.diffusion import DIFFUSION
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Nodes, Spec
from effllm.tables.kinds.methods import MethodRow, MethodTable, compared

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member


class DiffusionRow(MethodRow):
    """One transformer, trained once or under several seeds; what it was trained with is in its runs."""

    model: Text = Field(description="Name of the shape, such as DiT-XL/2.")
    runs: Annotated[list[Id], Field(min_length=1)] = Field(
        description="Ids of runs of diffusion; several are seeds of one configuration and make one row."
    )


class DiffusionTable(MethodTable):
    """A table with a row per shape and technique."""

    columns: ClassVar[Description] = DIFFUSION
    size: ClassVar[str] = "model"

    rows: Annotated[list[DiffusionRow], Field(min_length=1)] = Field(description="The rows, in order.")
    fidelity: PlainId | None = Field(
        default=None,
        description="Id of the fidelity whose figures stand in the rows; null measures the training alone.",
    )

    def check(self, study: "Study", where: str) -> None:
        self.check_runs(where, study.diffusion)
        first, *others = self.runs()
        batch = study.diffusion[first].global_batch_size
        for run in others:
            other = study.diffusion[run].global_batch_size
            if other != batch:
                raise ValueError(
                    f"{where}.rows: {run!r} takes {other} images a step and {first!r} {batch}, and time and memory of "
                    f"a step compare at one batch only: give both one diffusion.*.global_batch_size"
                )

        if self.fidelity is None:
            return
        require(f"{where}.fidelity", self.fidelity, study.fidelity)
        sampled = study.fidelity[self.fidelity].sampling
        for run in (first, *others):
            require(f"sampling.{sampled}.runs", run, study.sampling[sampled].runs)

    def nodes(self, study: "Study") -> Nodes:
        runs = self.runs()
        if self.fidelity is None:
            return {"diffuse": runs}
        sampling = study.fidelity[self.fidelity].sampling
        return {
            "diffuse": runs,
            "sample": [f"{run}.{sampling}" for run in runs],
            "fidelity": [f"{run}.{self.fidelity}" for run in runs],
        }

    def content(self, study: "Study") -> dict[str, Any]:
        sampling = {"sampling": study.fidelity[self.fidelity].sampling} if self.fidelity else {}
        return super().content(study) | sampling

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.tables.diffusion import diffusion_table

        return diffusion_table(spec, inputs)

    @staticmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        """Against the baseline method on the same model; where it has none, on the model that comes first."""
        from effllm.tables.artifacts import read_results
        from effllm.tables.items import items_of_diffusion
        from effllm.tables.members import Trained

        results = read_results("diffuse", inputs["diffuse"])
        for index, against, runs in compared(spec, DiffusionTable.size):
            yield Trained(index, against, items_of_diffusion([results[id] for id in runs]))
