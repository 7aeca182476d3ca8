"""Tables of scores: one row per model and precision, one column per benchmark."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from effllm.fields import Id, PlainId, repeated, require
from effllm.tables.columns.benchmarks import BENCHMARKS
from effllm.tables.description import Description
from effllm.tables.kinds.kind import Inputs, Labelled, Length, Nodes, Spec, Table

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member


class QuantizationTable(Table):
    """A table with a row per model and precision."""

    columns: ClassVar[Description] = BENCHMARKS

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

    def check(self, study: "Study", where: str) -> None:
        listed: tuple[tuple[str, list[str], Mapping[str, Any]], ...] = (
            ("models", self.models, study.models),
            ("precisions", self.precisions, study.precisions),
            ("benchmarks", self.benchmarks, study.benchmarks),
        )
        for key, ids, known in listed:
            for id in ids:
                require(f"{where}.{key}", id, known)
            if twice := repeated(ids):
                raise ValueError(f"{where}.{key}: {', '.join(twice)} is listed twice; list it once")
        for model in self.models:
            if self.benchmarks and study.models[model].source.kind == "random":
                raise ValueError(
                    f"{where}.benchmarks: a score of {model!r}, which has random weights, means nothing; give the "
                    "table no benchmarks, or take the model out of it"
                )
            for precision in self.precisions:
                study.check_precision(model, precision)
        if self.baseline not in self.precisions:
            raise ValueError(
                f"{where}.baseline: {self.baseline!r} is not among its precisions {self.precisions}; "
                "add it there or name another"
            )

    def nodes(self, study: "Study") -> Nodes:
        scored = {"evaluate": [f"{variant}.{benchmark}" for variant in self.variants for benchmark in self.benchmarks]}
        corpora = dict.fromkeys(self._corpora(study).values())
        compared = [f"{benchmark}.{corpus}" for benchmark in self.benchmarks for corpus in corpora]
        return scored | ({"overlap": compared} if compared else {})

    def _corpora(self, study: "Study") -> dict[str, str]:
        """The corpus that a model was pretrained on, by model; those that the study did not train are left out."""
        found = {model: study.corpus_behind(model) for model in self.models if self.benchmarks}
        return {model: corpus for model, corpus in found.items() if corpus is not None}

    @property
    def variants(self) -> list[str]:
        """Ids of the models in their precisions, in the order of the rows."""
        return [f"{model}.{precision}" for model in self.models for precision in self.precisions]

    def content(self, study: "Study") -> dict[str, Any]:
        return {
            "config": self.plain(),
            "model_labels": {id: study.models[id].label or id for id in self.models},
            "corpora": self._corpora(study),
            "benchmark_labels": {id: study.benchmarks[id].label or id for id in self.benchmarks},
        }

    def baseline_of(self, study: "Study") -> str:
        return self.baseline

    def benchmark_labels(self, study: "Study") -> list[str]:
        return [study.benchmarks[id].label or id for id in self.benchmarks]

    def models_behind(self, study: "Study") -> list[str]:
        return self.models

    def rules(self, study: "Study", name: str) -> dict[str, dict[str, Any]]:
        return {"precisions": {name: self.plain()}}

    def labelled(self, study: "Study", where: str) -> Iterable[Labelled]:
        yield Labelled(f"{where}.models", "models", self.models, study.models)
        yield Labelled(f"{where}.benchmarks", "benchmarks", self.benchmarks, study.benchmarks)

    def lengths(self, study: "Study") -> Iterable[Length]:
        for model in self.models:
            if self.benchmarks and study.evaluation.max_length is not None:
                yield Length(model, "evaluation.max_length", study.evaluation.max_length)
            for precision in self.precisions:
                calibration = study.precision_of(model, precision).calibration_set()
                if calibration is not None:
                    key = f"precisions.{precision}.calibration.sequence_length"
                    yield Length(model, key, calibration.sequence_length)

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.tables.benchmarks import scores_by_benchmark

        return scores_by_benchmark(spec, inputs)

    @staticmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        return scored_members(spec, inputs, spec["benchmark_labels"])


def scored_members(spec: Spec, inputs: Inputs, columns: Mapping[str, str]) -> "Iterator[Member]":
    """Against the baseline precision of the same model. columns: the column of each benchmark's score, by its id."""
    from effllm.tables.artifacts import read_results
    from effllm.tables.items import items_of_evaluation
    from effllm.tables.members import Scored

    results = read_results("evaluate", inputs["evaluate"])
    config, baseline = spec["config"], spec["baseline"]
    precisions = config["precisions"]
    for index, (model, precision) in enumerate(product(config["models"], precisions)):
        against = index - precisions.index(precision) + precisions.index(baseline)
        scored = {id: results[f"{model}.{precision}.{id}"] for id in config["benchmarks"]}
        answers = {columns[id]: items_of_evaluation(result) for id, result in scored.items()}
        accuracies = [id for id, result in scored.items() if result.content and result.content.role == "accuracy"]
        yield Scored(index, against, answers, tuple(columns[id] for id in accuracies))
