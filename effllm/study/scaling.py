"""The section `scaling`: scaling laws over the rows of tables of pretraining, for results/scaling.csv."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from effllm.fields import PlainId, PositiveInt, Section, Seed, require
from effllm.tables.kinds.pretraining import PretrainingTable

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.training.settings import PretrainingRun

# Hoffmann et al. (arXiv 2203.15556) find about so many tokens per parameter to be the best use of compute.
_TOKENS_PER_PARAMETER = 20
_LEAST_POINTS = 3


class ScalingTarget(Section):
    """Where the techniques' losses are predicted."""

    parameters: PositiveInt = Field(description="Parameters, as `size` counts them.")
    tokens: PositiveInt | None = Field(default=None, description="Training tokens; null takes 20 per parameter.")


class Scaling(Section):
    """Scaling laws of the techniques of Tables 3 to 6 that have three points of size and tokens or more."""

    target: ScalingTarget = Field(description="Size for which losses and ranks are predicted.")
    tables: list[PlainId] = Field(
        default_factory=list, description="Tables whose techniques compete; empty takes all of pretraining."
    )
    size: Literal["parameters_active", "parameters", "parameters_without_embeddings"] = Field(
        default="parameters_active",
        description="What N counts: the parameters that a token passes through, all of them, or all but the input "
        "table. Without a mixture the first two are the same.",
    )
    on_the_way: Literal["constant", "all", "none"] = Field(
        default="constant",
        description="Points of `held_out_curve` that count. constant: those of tables whose runs all keep their rate "
        "after the warm-up. all: of decaying rates too, whose losses on the way are higher than those of shorter runs. "
        "none: the ends of runs alone.",
    )
    draws: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=500, description="Data sets that intervals and ranks are drawn from."
    )
    seed: Seed = Field(default=0, description="Seed of the draws.")

    def content(self, study: Study) -> dict[str, Any]:
        """What decides results/scaling.csv beside its artifacts."""
        tokens = self.target.tokens or _TOKENS_PER_PARAMETER * self.target.parameters
        return {
            **self.model_dump(include={"size", "draws", "seed"}),
            "target": {"parameters": self.target.parameters, "tokens": tokens},
            "tables": {
                name: {
                    "techniques": techniques,
                    "on_the_way": self._counts_on_the_way(study, study.tables.defined()[name].nodes(study)["pretrain"]),
                }
                for name, techniques in self.techniques(study).items()
            },
        }

    def runs(self, study: Study) -> list[str]:
        """Ids of the runs behind the laws, each once."""
        found = (runs for techniques in self.techniques(study).values() for runs in techniques.values())
        return list(dict.fromkeys(run for runs in found for run in runs))

    def techniques(self, study: Study) -> dict[str, dict[str, list[str]]]:
        """By table and technique the runs, of techniques with enough points."""
        found: dict[str, dict[str, list[str]]] = {}
        for name, table in self._tables(study):
            rows: dict[str, list[tuple[str, str]]] = {}
            for row in table.rows:
                rows.setdefault(row.method, []).extend((row.parameters, run) for run in row.runs)
            with_curve = self._counts_on_the_way(study, table.nodes(study)["pretrain"])
            enough = {
                method: [run for _, run in listed]
                for method, listed in rows.items()
                if len(_places(study, listed, with_curve)) >= _LEAST_POINTS
            }
            if enough:
                found[name] = enough
        return found

    def check(self, study: Study) -> None:
        """Raise ValueError for tables that the study lacks or that are of no pretraining, or where no law is to fit."""
        defined = dict(study.tables.defined())
        for name in self.tables:
            require("scaling.tables", name, defined)
            if not isinstance(defined[name], PretrainingTable):
                raise ValueError(f"scaling.tables: {name!r} is no table of pretraining: take it out")
        if not self.techniques(study):
            raise ValueError(
                f"scaling: no technique of {', '.join(name for name, _ in self._tables(study)) or 'the tables'} has "
                f"{_LEAST_POINTS} different sizes or token counts: add rows, or held_out_curve to its runs, or make "
                "the section null"
            )

    def _tables(self, study: Study) -> Iterator[tuple[str, PretrainingTable]]:
        for name, table in study.tables.defined().items():
            if isinstance(table, PretrainingTable) and (not self.tables or name in self.tables):
                yield name, table

    def _counts_on_the_way(self, study: Study, ids: list[str]) -> bool:
        """Whether points on the way count: losses of one table must be over the same text, at comparable rates."""
        runs = [study.pretraining[id] for id in ids]
        curves = {run.held_out_curve.tokens if run.held_out_curve else "none" for run in runs}
        if self.on_the_way == "none" or len(curves) != 1 or "none" in curves:
            return False
        return self.on_the_way == "all" or all(map(_keeps_rate, runs))


def _keeps_rate(run: PretrainingRun) -> bool:
    return run.optimizer.minimum_learning_rate == run.optimizer.learning_rate


def _places(study: Study, listed: list[tuple[str, str]], with_curve: bool) -> set[tuple[str, int]]:
    """Nominal size and training tokens of every point of a technique."""
    places = set()
    for size, id in listed:
        run = study.pretraining[id]
        curve = run.held_out_curve if with_curve else None
        steps = curve.steps(run.max_steps) if curve else [run.max_steps]
        places |= {(size, step * run.global_batch_size * run.sequence_length) for step in steps}
    return places
