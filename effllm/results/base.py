"""What all results have in common: typed fields, one text for equal content, and damage told in one sentence."""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from effllm.errors import UserError

Number = int | float
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
"""Low and high end of a 95 % interval."""
MAX_SHOWN = 60


class Part(BaseModel):
    """An object within a result: written with the keys below and no others, never with a NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True, protected_namespaces=()
    )


class Figures(Part):
    """Figures of which each may be null, with the reason why."""

    reasons: dict[str, str] = Field(description="Why figures are null, by key.")

    def cell(self, name: str) -> tuple[Any, str | None]:
        """The figure called `name`, and the reason where it is None. AttributeError for a name without a field."""
        value = getattr(self, name)
        if value is not None:
            return value, None
        if name not in self.model_fields_set:
            return None, f"an earlier version of this program, which did not record {name}, wrote the result"
        return None, self.reasons.get(name, "the result does not say why")


class ResultFile(BaseModel):
    """A JSON file of an artifact."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, defer_build=True, protected_namespaces=())

    FILE: ClassVar[str]
    """Its path within the artifact."""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The file of the artifact in `directory`; `UserError` names the file, the key and the remedy.

        Keys without a field are passed over: a later version of this program may have written them.
        """
        path = directory / cls.FILE
        remedy = f"delete {directory} and run again"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path} is missing: {remedy}.") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}.") from None
        try:
            return cls.model_validate_json(content, extra="ignore")
        except ValidationError as error:
            raise UserError(f"{path} {_problem(error)}; {remedy}.") from None

    def to_json(self) -> str:
        """The file's text. Keys are sorted, so that equal results are equal files."""
        # What was left out when it was made, because it did not apply or was not known yet, stays out.
        return json.dumps(self.model_dump(exclude_unset=True), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _problem(error: ValidationError) -> str:
    """What is wrong with a file, first things only: `has no 'cost.threads': ...`."""
    first = error.errors(include_url=False)[0]
    # The branches of a number are steps of pydantic's, not keys.
    key = ".".join(str(part) for part in first["loc"] if part not in ("int", "float"))
    if first["type"] == "missing":
        return f"has no {key!r}: another version of this program wrote it"
    if not key:
        return f"is not a JSON object of this kind ({first['msg'][:MAX_SHOWN]})"
    value = f"{first['input']!r:.{MAX_SHOWN}}"
    return f"is damaged or of another version: {key} is {value} ({first['msg'][:MAX_SHOWN]})"
