"""What tables of trainings have in common: a row per technique and size of model, over one or several seeds."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from effllm.fields import LONGEST_TEXT, Id, Section, Text, repeated, require, suggestion
from effllm.tables.kinds.kind import Spec, Table

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.training.settings import Recipe


class MethodRow(Section):
    """A technique at one size, trained once or under several seeds; what it was trained with is in its runs."""

    method: Text = Field(description="Name of the technique, such as MQA.")
    runs: Annotated[list[Id], Field(min_length=1)] = Field(
        description="Ids of runs; several are seeds of one configuration and make one row."
    )


class MethodTable(Table):
    """A table whose rows are compared with a method's. `size`: the key of a row that says at which size."""

    size: ClassVar[str]

    # A subclass has rows of its own.
    rows: list[Any] = Field(description="The rows, in order.")
    baseline: str = Field(
        default="",
        max_length=LONGEST_TEXT,
        description="Method that the other rows are compared with, each at its own size; the first row's if left out.",
    )

    def runs(self) -> list[str]:
        """Ids of the runs behind the rows, in order."""
        return [run for row in self.rows for run in row.runs]

    @model_validator(mode="after")
    def _rows_differ(self) -> "MethodTable":
        names = [f"{row.method} {getattr(row, self.size)}" for row in self.rows]
        for kind, listed in (("row", names), ("run", self.runs())):
            if twice := repeated(listed):
                raise ValueError(f"rows: the {kind} {', '.join(map(repr, twice))} stands twice; list it once")
        methods = [row.method for row in self.rows]
        if self.baseline and self.baseline not in methods:
            raise ValueError(f"baseline: no row has the method {self.baseline!r}; {suggestion(self.baseline, methods)}")
        return self

    def check_runs(self, where: str, runs: "Mapping[str, Recipe]") -> None:
        """Raise ValueError for a row whose runs are not among these, or are not one configuration."""
        for index, row in enumerate(self.rows):
            for run in row.runs:
                require(f"{where}.rows.{index}.runs", run, runs)
            check_seeds(f"{where}.rows.{index}.runs", row.runs, runs)

    def content(self, study: "Study") -> dict[str, Any]:
        # What a row is compared with changes no row.
        return {"config": {key: value for key, value in self.plain().items() if key != "baseline"}}

    def baseline_of(self, study: "Study") -> str:
        method: str = self.rows[0].method
        return self.baseline or method


def compared(spec: Spec, size: str) -> Iterator[tuple[int, int, list[str]]]:
    """Each row's place, that of the row of the baseline at the same size, and its runs.

    Where the baseline has no row of that size, it is the one that comes first.
    """
    rows, baseline = spec["config"]["rows"], spec["baseline"]
    sizes = {row[size]: index for index, row in enumerate(rows) if row["method"] == baseline}
    for index, row in enumerate(rows):
        against = index if row["method"] == baseline else sizes.get(row[size], min(sizes.values()))
        yield index, against, row["runs"]


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
