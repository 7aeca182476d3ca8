"""Claims as data: the file that states them, typed, and its mistakes in a sentence."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from effllm.errors import UserError
from effllm.fields import Float, PositiveInt, Section, Text, repeated

Measure = Literal["ratio", "difference"]


class Sizes(Section):
    """Rows of models between two sizes, both included, in billions of parameters."""

    at_least: Float = Field(default=0.0, description="Smallest size.")
    below: Float = Field(default=1e9, description="First size that is too large.")


class _Statement(Section):
    says: Text = Field(description="The statement in words.")
    table: Text = Field(description="The table that it is about, such as table9.")
    sizes: Sizes = Field(default=Sizes(), description="Models that it is about; all if left out.")
    context: bool = Field(
        default=False,
        description="A figure that belongs to the claim and decides nothing, as the paper does not state it.",
    )


class PairStatement(_Statement):
    """A technique against another in every group (model or nominal size) that has both.

    mean: the mean change over pairs is as said. every: each pair's is. extreme: the largest change reaches so far.
    """

    form: Literal["mean", "every", "extreme"]
    column: Text = Field(description="Column that is compared.")
    row: Text = Field(description="The technique.")
    against: Text = Field(description="What it is compared with; its first row where a group has none.")
    measure: Measure = Field(default="ratio", description="How a change is counted; differences in the column's unit.")
    direction: Literal["lower", "higher"] = Field(description="Where the statement says that the figure goes.")
    size: tuple[Float, Float] | None = Field(
        default=None, strict=False, description="Lowest and highest change that the statement admits, if it names any."
    )
    same: list[Text] = Field(
        default=[], description="Columns of which the first that a table has must be equal for a pair to count."
    )


class BestStatement(_Statement):
    """A technique has the best figure of its group."""

    form: Literal["best"]
    column: Text
    row: Text
    among: list[Text] = Field(default=[], description="Techniques that it is compared with; all if left out.")


class NoneBestStatement(_Statement):
    """No row of a group is best in every one of these columns."""

    form: Literal["none_best"]
    columns: Annotated[list[Text], Field(min_length=2)]


class UndominatedStatement(_Statement):
    """No other row of its group is as good as the technique in each of these columns, and surely better in one."""

    form: Literal["undominated"]
    columns: Annotated[list[Text], Field(min_length=2)]
    row: Text


Statement = Annotated[
    PairStatement | BestStatement | NoneBestStatement | UndominatedStatement, Field(discriminator="form")
]


class Claim(Section):
    """A claim in the words of whoever made it, and the statements that it amounts to."""

    id: PositiveInt
    says: Text
    statements: Annotated[list[Statement], Field(min_length=1)]


class Claims(Section):
    """The claims of one source."""

    source: Text = Field(description="Who claims this.")
    claims: list[Claim]

    @model_validator(mode="after")
    def _ids_differ(self) -> "Claims":
        if twice := repeated(str(claim.id) for claim in self.claims):
            raise ValueError(f"claims: the id {', '.join(twice)} is given twice; number the claims anew")
        return self


def read_claims(path: Path) -> Claims:
    """The claims of a YAML file; UserError names the key, the value and what would do."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the claims of the paper lie in config/paper/claims.yaml.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable YAML ({str(error).splitlines()[0]}); correct it.") from None
    try:
        return Claims.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']} (it is {str(first['input'])[:60]!r}); correct it.") from None
