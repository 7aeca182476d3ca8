"""What configurations are made of: strict sections, bounded numbers, ids, and names of a registry's entries."""

import difflib
import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
)
from pydantic_core import CoreSchema, core_schema


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


_MOST_CHOICES = 16
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist = 2, 3, 4


def shortened(value: Any) -> str:
    """A value as a message quotes it: on one line, of at most 100 characters."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of about {int(value.bit_length() * 0.30103) + 1} digits"
    text = _REPR.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def suggestion(word: str, known: Collection[str]) -> str:
    """What to write instead of an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word[:100], known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if not known:
        return "none is defined: add it"
    listed = sorted(known)
    more = f" or {len(listed) - _MOST_CHOICES} more" if len(listed) > _MOST_CHOICES else ""
    return f"choose one of {', '.join(listed[:_MOST_CHOICES])}{more}"


def require(where: str, id: str, known: Collection[str]) -> None:
    """Raise ValueError with the key `where` for an id that is not known."""
    if id not in known:
        raise ValueError(f"{where}: {id!r} does not exist; {suggestion(id, known)}")


def repeated(items: Iterable[str]) -> list[str]:
    """The items that occur more than once, sorted."""
    return sorted(item for item, count in Counter(items).items() if count > 1)


def _whole_float(value: Any) -> Any:
    """YAML writes 2.0e-3 for a float and 1 for an int; an int is a fine float, a bool is not."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT:
        return float(value)
    return value


# Bounds that no real study reaches, and behind which arithmetic overflows or loops without end: a slip of the keyboard
# is refused here instead of after hours.
LARGEST_FLOAT = 1e12
LARGEST_COUNT = 10**15
# What `numpy.random.seed` takes.
LARGEST_SEED = 2**32 - 1
LARGEST_DIMENSION = 2**24
LONGEST_ID = 64
LONGEST_TEXT = 4096

Float = Annotated[float, Field(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT, allow_inf_nan=False), BeforeValidator(_whole_float)]
PositiveFloat = Annotated[Float, Field(gt=0, ge=1e-30)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Seconds = Annotated[Float, Field(ge=0, le=86_400)]
# A sampler cannot be asked more often than every millisecond, and less often than every minute it misses the window.
SamplePeriod = Annotated[Float, Field(ge=1e-3, le=60)]
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
# Widths, numbers of layers, heads and experts, words of a vocabulary, ranks of a run.
Dimension = Annotated[int, Field(gt=0, le=LARGEST_DIMENSION)]
Layers = Annotated[int, Field(gt=0, le=10_000)]

# AdamW's steps have about this size, whatever the gradients are.
LearningRate = Annotated[PositiveFloat, Field(le=1)]


def _printable(value: Any) -> Any:
    if isinstance(value, str) and not all(character.isprintable() for character in value):
        raise ValueError(f"{value!r:.60} holds a control character: delete it")
    return value


# A text of one line: a name, a label, a path.
Text = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_TEXT), AfterValidator(_printable)]


def ending_in(*suffixes: str) -> AfterValidator:
    """What makes `Text` the type of a path or glob pattern of files that end in one of `suffixes`."""

    def check(value: str) -> str:
        if not value.lower().endswith(suffixes):
            raise ValueError(
                f"{value!r:.80} names no {', '.join(f'*{suffix}' for suffix in suffixes)}: name such files, or a "
                "pattern of them"
            )
        return value

    return AfterValidator(check)


# Ids are names of directories, so they hold no `/`, and they are joined by dots (`llama-1m.int4.word-order`):
# only a model's own name may hold one.
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=LONGEST_ID)]
PlainId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=LONGEST_ID)]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]


def _repository(value: str) -> str:
    # The hub's own rule, huggingface_hub.utils.validate_repo_id, in the words of a study.
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", value, re.ASCII) or len(value) > 96:
        name = re.sub(r"^\w+://[^/]+/(datasets/)?|/(tree|blob|resolve)/.*$|\s", "", value)
        remedy = f"write {name}" if name != value and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else "write owner/name"
        raise ValueError(f"{value!r:.80} is not the name of a repository on the hub: {remedy}")
    if "--" in value or ".." in value or value.endswith((".git", "-", ".")):
        raise ValueError(
            f"{value!r:.80} is not the name of a repository on the hub, where '--', '..' and a last '.git', '-' or "
            "'.' do not occur: correct it"
        )
    return value


# A repository on the hub.
Repository = Annotated[str, AfterValidator(_repository)]


@dataclass(frozen=True)
class NameIn:
    """The type of a key whose value names an entry of a registry: `Annotated[str, NameIn(ATTENTION)]`."""

    registry: Mapping[str, object]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.registry))


@dataclass(frozen=True)
class FormOf:
    """The type of a block that is one of a registry's forms, told apart by the key `kind`.

    `registry` has the forms by kind: `Annotated[Precision, FormOf(PRECISIONS)]`.
    """

    registry: Mapping[str, type[BaseModel]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        forms: Any = Union[tuple(self.registry.values())]  # noqa: UP007  (the forms are known when this runs)
        return handler.generate_schema(Annotated[forms, Field(discriminator="kind")])
