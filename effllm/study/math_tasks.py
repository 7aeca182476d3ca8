"""Benchmarks of formulas: where their problems come from, and how long an answer may be."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from effllm.fields import Dimension, Section, Text, ending_in

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
WebAddress = Annotated[Text, StringConstraints(pattern=r"^https?://[^\s/]+/\S+$"), ending_in(".json")]


class WebFile(Section):
    """A file at an address, its content pinned by its digest."""

    kind: Literal["url"]
    url: WebAddress = Field(description="Address of the file; one that names a commit stays what it was.")
    sha256: Sha256 = Field(description="SHA-256 of the file, 64 hexadecimal digits.")


class ProblemFile(Section):
    """A file on this machine in HARDMath's form: a JSON object of problems, or a list of them."""

    kind: Literal["file"]
    path: Annotated[Text, ending_in(".json")] = Field(description="Path of the file.")


class HardMathBenchmark(Section):
    """Asymptotic formulas of HARDMath (Fan et al. 2024, arXiv 2410.09988), graded by their values, without a judge.

    The grading is this project's own: docs/harness.md says what counts as right.
    """

    kind: Literal["hard_math"]
    source: Annotated[WebFile | ProblemFile, Field(discriminator="kind")] = Field(
        description="Where the problems come from: url or file."
    )
    new_tokens: Dimension = Field(default=2048, description="Longest answer in tokens, its reasoning included.")
    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")
    limit: Dimension | None = Field(default=None, description="Problems; null takes all.")

    takes_chat: ClassVar[bool] = True
