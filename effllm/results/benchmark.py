"""benchmark.json: what a benchmark is and how it is scored."""

from typing import Any, ClassVar

from pydantic import Field

from effllm.results.base import Part, ResultFile
from effllm.results.evaluation import Kind, Role


class BenchmarkTask(Part):
    """One task of a benchmark, without subtasks."""

    name: str = Field(description="As lm-eval knows it.")
    output_type: str = Field(description="lm-eval's kind of request.")
    items: int = Field(description="Rows that are scored.")
    data_files: dict[str, str] = Field(description="Parquet files by split, relative to the artifact.")
    include: str | None = Field(description="Registered file in lm-eval's folder of tasks; null with config.")
    config: dict[str, Any] = Field(description="The whole task where it is not registered.")


class Benchmark(Part, ResultFile):
    """A benchmark that needs nothing but lm-eval to be run."""

    FILE: ClassVar[str] = "benchmark.json"

    kind: Kind = Field(description="As the study calls it.")
    task: str = Field(description="The name to run: one of tasks or of groups.")
    metric: str = Field(description="The score, as lm-eval names it.")
    higher_is_better: bool = Field(description="Of the score.")
    role: Role = Field(description="A share of right answers, or a perplexity, which is in no mean.")
    chance_level: float = Field(description="The score of guessing, in the metric's unit.")
    chance_meaning: str = Field(description="What guessing is.")
    items: int = Field(description="Rows that are scored.")
    limit: int | None = Field(description="First items of each task; null for all.")
    tasks: list[BenchmarkTask] = Field(description="What is scored.")
    cluster: str | None = Field(description="Column that is equal for items made from one text; null without.")
    groups: dict[str, str] = Field(description="Registered files of groups, by name.")
    source: dict[str, Any] = Field(description="Where the rows are from.")
