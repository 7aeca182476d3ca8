"""What a table says of itself. Nothing heavy is imported here, because every parse of the workflow reads it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from effllm.fields import Section
from effllm.tables.description import Description

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member

Nodes = dict[str, list[str]]
"""Ids of nodes by stage, in the order in which a table reads them."""
Spec = Mapping[str, Any]
"""What `Graph.table_spec` says of a table."""
Inputs = Mapping[str, list[str]]
"""Paths of manifests by stage: those of `nodes`."""


class Labelled(NamedTuple):
    """Entries that rows or columns are named by: the key that lists them, their section, their ids and themselves."""

    where: str
    section: str
    ids: Sequence[str]
    entries: Mapping[str, Any]


class Length(NamedTuple):
    """Tokens that a table makes a model read, and the key that says so."""

    model: str
    key: str
    tokens: int


class Table(Section, ABC):
    """A table of a study: its section of the configuration, what it reads, and how its rows come about.

    columns: what its columns mean for a decision.
    """

    columns: ClassVar[Description]

    @abstractmethod
    def check(self, study: "Study", where: str) -> None:
        """Raise ValueError, with the key below `where`, for what the study does not have or the table cannot show."""

    @abstractmethod
    def nodes(self, study: "Study") -> Nodes:
        """The artifacts that the table reads."""

    @abstractmethod
    def content(self, study: "Study") -> dict[str, Any]:
        """What decides the table beside its artifacts: `config`, and the labels that rows and columns have."""

    @abstractmethod
    def baseline_of(self, study: "Study") -> str:
        """Id of the technique that the other rows are compared with."""

    @staticmethod
    @abstractmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        """The rows."""

    @staticmethod
    @abstractmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        """Each row with the one that it is compared with, and what was recorded of it item by item."""

    def baseline_label(self, study: "Study") -> str:
        """The baseline as the rows name it."""
        return self.baseline_of(study)

    def benchmark_labels(self, study: "Study") -> list[str]:
        """Names of the benchmarks among the columns."""
        return []

    def models_behind(self, study: "Study") -> list[str]:
        """Ids of the models whose training is behind the rows."""
        return []

    def rules(self, study: "Study", name: str) -> dict[str, dict[str, Any]]:
        """What plausibility rules that compare artifacts need of the table called `name`, by kind."""
        return {}

    def labelled(self, study: "Study", where: str) -> Iterable[Labelled]:
        """The entries that must differ in their labels; `where` is the table's key."""
        return ()

    def lengths(self, study: "Study") -> Iterable[Length]:
        """What the table makes models read."""
        return ()
