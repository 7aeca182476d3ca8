"""Tables of pretraining: architectures trained from random weights, one row per method and size."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from effllm.fields import LONGEST_TEXT, Id, Section, Text, repeated, require, suggestion
from effllm.tables.columns.pretraining import PRETRAINING
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Nodes, Spec, Table

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member
    from effllm.training.settings import Recipe


class PretrainingRow(Section):
    """One architecture, trained once or under several seeds; what it was trained with is in its runs."""

    method: Text = Field(description="Name of the technique, such as MQA.")
    parameters: Text = Field(description="Nominal size, such as 0.5B; the real number of parameters stands beside it.")
    runs: Annotated[list[Id], Field(min_length=1)] = Field(
        description="Ids of pretraining runs; several are seeds of one configuration and make one row."
    )


class PretrainingTable(Table):
    """A table with a row per architecture and size."""

    columns: ClassVar[Description] = PRETRAINING

    rows: Annotated[list[PretrainingRow], Field(min_length=1)] = Field(description="The rows, in order.")
    baseline: str = Field(
        default="",
        max_length=LONGEST_TEXT,
        description="Method that the other rows are compared with, each at its own size; the first row's if left out.",
    )

    @model_validator(mode="after")
    def _rows_differ(self) -> "PretrainingTable":
        names = [f"{row.method} {row.parameters}" for row in self.rows]
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
                require(f"{where}.rows.{index}.runs", run, study.pretraining)
            check_seeds(f"{where}.rows.{index}.runs", row.runs, study.pretraining)

    def nodes(self, study: "Study") -> Nodes:
        return {"pretrain": [run for row in self.rows for run in row.runs]}

    def content(self, study: "Study") -> dict[str, Any]:
        # What a row is compared with changes no row.
        return {"config": {key: value for key, value in self.plain().items() if key != "baseline"}}

    def baseline_of(self, study: "Study") -> str:
        return self.baseline or self.rows[0].method

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
        rows, baseline = spec["config"]["rows"], spec["baseline"]
        sizes = {row["parameters"]: index for index, row in enumerate(rows) if row["method"] == baseline}
        for index, row in enumerate(rows):
            against = index if row["method"] == baseline else sizes.get(row["parameters"], min(sizes.values()))
            yield Trained(index, against, items_of_pretraining([results[id] for id in row["runs"]]))


def check_seeds(where: str, ids: list[str], runs: "Mapping[str, Recipe]") -> None:
    """ValueError unless the runs of one row are one configuration under different seeds."""
    first, *others = ids
    for id in others:
        differing = [key for key in _differing_keys(runs[first].plain(), runs[id].plain()) if key != "seed"]
        if differing:
            raise ValueError(
                f"{where}: {first!r} and {id!r} differ in {', '.join(differing)}, and runs of one row may differ in "
                "seed only: give each a row of its own"
            )
    by_seed: dict[int, str] = {}
    for id in ids:
        seed = runs[id].seed
        if seed in by_seed:
            raise ValueError(
                f"{where}: {by_seed[seed]!r} and {id!r} are the same run, with seed {seed}: change the seed of one"
            )
        by_seed[seed] = id


def _differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, keys that only one of them has included."""
    keys = []
    for key in sorted(one.keys() | other.keys()):
        ours, theirs = one.get(key), other.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            keys += _differing_keys(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            keys.append(f"{prefix}{key}")
    return keys
