"""The tables of a study, by the paper's numbers: which runs, models and techniques stand in their rows."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from effllm.fields import LONGEST_TEXT, Id, PlainId, Section, Text, repeated, suggestion
from effllm.study.training import PretrainingRun


class PretrainingRow(Section):
    """One architecture, trained once or under several seeds; what it was trained with is in its runs."""

    method: Text = Field(description="Name of the technique, such as MQA.")
    parameters: Text = Field(description="Nominal size, such as 0.5B; the real number of parameters stands beside it.")
    runs: Annotated[list[Id], Field(min_length=1)] = Field(
        description="Ids of pretraining runs; several are seeds of one configuration and make one row."
    )


class PretrainingTable(Section):
    """A table with a row per architecture and size."""

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


class QuantizationTable(Section):
    """A table with a row per model and precision."""

    models: Annotated[list[Id], Field(min_length=1)] = Field(description="Model ids, in the order of the rows.")
    precisions: Annotated[list[PlainId], Field(min_length=1)] = Field(
        description="Precision ids, in the order of the rows."
    )
    benchmarks: list[PlainId] = Field(
        description="Benchmark ids, in the order of the columns; empty where only efficiency is measured."
    )
    baseline: PlainId = Field(
        default="",
        description="Precision against which compression is measured, and the other rows of a model are compared; the "
        "first one if left out.",
    )

    @model_validator(mode="before")
    @classmethod
    def _first_is_the_baseline(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "baseline" in raw:
            return raw
        precisions = raw.get("precisions")
        return {**raw, "baseline": precisions[0]} if isinstance(precisions, list) and precisions else raw


class InferenceTable(QuantizationTable):
    """Table 9: a table of precisions with figures of the fixed workloads."""

    workload: PlainId = Field(
        default="single", description="Workload of the paper's columns; the others stand beside it."
    )


class FinetuningTable(Section):
    """A table with a row per base model and method of a suite."""

    suite: PlainId = Field(description="Id of the fine-tuning suite.")
    baseline: PlainId | Literal[""] = Field(
        default="",
        description="Id of the method that the other rows of a model are compared with; the suite's first if left out.",
    )


class Tables(Section):
    """The tables of the study, by the paper's numbers."""

    table3: PretrainingTable | None = Field(default=None, description="Efficient attention.")
    table4: PretrainingTable | None = Field(default=None, description="Positional encoding.")
    table5: PretrainingTable | None = Field(default=None, description="Mixture of experts.")
    table6: PretrainingTable | None = Field(default=None, description="Attention-free architectures.")
    table7: FinetuningTable | None = Field(default=None, description="Fine-tuning on OpenO1-SFT.")
    table8: FinetuningTable | None = Field(default=None, description="Fine-tuning on medical-o1-reasoning-SFT.")
    table9: InferenceTable | None = Field(default=None, description="Quantization.")
    table16: QuantizationTable | None = Field(default=None, description="Quantization by benchmark.")


def check_seeds(where: str, ids: list[str], runs: Mapping[str, PretrainingRun]) -> None:
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
