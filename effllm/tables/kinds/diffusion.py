"""Tables 10 and 11: diffusion transformers, one row per model and technique."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from effllm.fields import LONGEST_TEXT, Id, PlainId, Section, Text, repeated, require, suggestion
from effllm.tables.columns.diffusion import DIFFUSION
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Nodes, Spec, Table
from effllm.tables.kinds.pretraining import check_seeds

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member


class DiffusionRow(Section):
    """One transformer, trained once or under several seeds; what it was trained with is in its runs."""

    model: Text = Field(description="Name of the shape, such as DiT-XL/2.")
    method: Text = Field(description="Name of the technique, such as MQA.")
    runs: Annotated[list[Id], Field(min_length=1)] = Field(
        description="Ids of runs of diffusion; several are seeds of one configuration and make one row."
    )


class DiffusionTable(Table):
    """A table with a row per shape and technique."""

    columns: ClassVar[Description] = DIFFUSION

    rows: Annotated[list[DiffusionRow], Field(min_length=1)] = Field(description="The rows, in order.")
    fidelity: PlainId | None = Field(
        default=None,
        description="Id of the fidelity whose figures stand in the rows; null measures the training alone.",
    )
    baseline: str = Field(
        default="",
        max_length=LONGEST_TEXT,
        description="Method that the other rows of a model are compared with; the first row's if left out.",
    )

    @model_validator(mode="after")
    def _rows_differ(self) -> "DiffusionTable":
        names = [f"{row.model} {row.method}" for row in self.rows]
        for kind, listed in (("row", names), ("run", [run for row in self.rows for run in row.runs])):
            if twice := repeated(listed):
                raise ValueError(f"rows: the {kind} {', '.join(map(repr, twice))} stands twice; list it once")
        methods = [row.method for row in self.rows]
        if self.baseline and self.baseline not in methods:
            raise ValueError(f"baseline: no row has the method {self.baseline!r}; {suggestion(self.baseline, methods)}")
        return self

    def check(self, study: "Study", where: str) -> None:
        for index, row in enumerate(self.rows):
            for run in row.runs:
                require(f"{where}.rows.{index}.runs", run, study.diffusion)
            check_seeds(f"{where}.rows.{index}.runs", row.runs, study.diffusion)
        first, *others = (run for row in self.rows for run in row.runs)
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
        runs = [run for row in self.rows for run in row.runs]
        if self.fidelity is None:
            return {"diffuse": runs}
        sampling = study.fidelity[self.fidelity].sampling
        return {
            "diffuse": runs,
            "sample": [f"{run}.{sampling}" for run in runs],
            "fidelity": [f"{run}.{self.fidelity}" for run in runs],
        }

    def content(self, study: "Study") -> dict[str, Any]:
        # What a row is compared with changes no row.
        config = {key: value for key, value in self.plain().items() if key != "baseline"}
        return {"config": config, **({"sampling": study.fidelity[self.fidelity].sampling} if self.fidelity else {})}

    def baseline_of(self, study: "Study") -> str:
        return self.baseline or self.rows[0].method

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
        rows, baseline = spec["config"]["rows"], spec["baseline"]
        models = {row["model"]: index for index, row in enumerate(rows) if row["method"] == baseline}
        for index, row in enumerate(rows):
            against = index if row["method"] == baseline else models.get(row["model"], min(models.values()))
            yield Trained(index, against, items_of_diffusion([results[id] for id in row["runs"]]))
