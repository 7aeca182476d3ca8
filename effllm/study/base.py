"""What every part of a study's configuration is made of: strict sections, ids, and references."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


class Section(BaseModel):
    """A block of the configuration: unknown keys are refused, text is never read as a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    def plain(self) -> dict[str, Any]:
        """The block as JSON types with sorted keys."""
        return sort_keys(self.model_dump(mode="json"))


def sort_keys(value: Any) -> Any:
    """Recursively sort the keys of dicts: Snakemake compares specs by their repr."""
    if isinstance(value, dict):
        return {key: sort_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [sort_keys(item) for item in value]
    return value


def _whole_float(value: Any) -> Any:
    """YAML writes 2.0e-3 for a float and 1 for an int; an int is a fine float, a bool is not."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Float = Annotated[float, BeforeValidator(_whole_float)]
PositiveFloat = Annotated[Float, Field(gt=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]

# Ids are names of directories, so they hold no `/`, and they are joined by dots (`llama-1m.int4.word-order`):
# only a model's own name may hold one.
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
PlainId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
