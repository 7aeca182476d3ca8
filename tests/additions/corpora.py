"""A table of corpora, a row each: what is left of what was read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.fields import Id, require
from effllm.tables.columns.shared import STATUS
from effllm.tables.description import Column, Description
from effllm.tables.kinds.kind import Inputs, Nodes, Spec, Table

if TYPE_CHECKING:
    from effllm.study.study import Study
    from effllm.tables.members import Member

CORPORA = Description(
    title="corpora",
    names=("corpus",),
    subject="corpus",
    signature=("documents_read",),
    quality="kept",
    costs=("documents_read",),
    scope=(),
    declared=(
        Column("corpus", "name"),
        Column("kept", "quality", better="higher", points=True),
        Column("documents_read", "cost", "documents", better="lower"),
        *STATUS,
    ),
)


class CorporaTable(Table):
    """A table with a row per corpus."""

    columns: ClassVar[Description] = CORPORA

    corpora: list[Id]

    def check(self, study: "Study", where: str) -> None:
        for id in self.corpora:
            require(f"{where}.corpora", id, study.corpora)

    def nodes(self, study: "Study") -> Nodes:
        return {"corpus": self.corpora}

    def content(self, study: "Study") -> dict[str, Any]:
        return {"config": self.plain()}

    def baseline_of(self, study: "Study") -> str:
        return self.corpora[0]

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.results.data import CorpusSummary
        from effllm.runtime.artifact import Artifact
        from effllm.tables.cells import Row

        rows = []
        for artifact in map(Artifact.open, inputs["corpus"]):
            summary = CorpusSummary.read(artifact.directory)
            row = Row()
            row.set("corpus", artifact.manifest.id)
            row.set("documents_read", summary.seen)
            row.set("kept", sum(split.documents for split in summary.splits.values()) / summary.seen)
            rows.append(row.finish("ok", None))
        return rows

    @staticmethod
    def members(spec: Spec, inputs: Inputs) -> "Iterator[Member]":
        """None: corpora share no items."""
        return iter(())
