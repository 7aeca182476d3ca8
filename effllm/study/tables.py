"""The section `tables` of a study: a key for each table of the registry."""

from typing import TYPE_CHECKING

from pydantic import Field, create_model

from effllm.fields import Section
from effllm.tables.kinds import TABLES
from effllm.tables.kinds.kind import Table


class TablesSection(Section):
    """The tables of the study, by the paper's numbers."""

    def defined(self) -> dict[str, Table]:
        """The tables that the study has, in the registry's order."""
        return {name: table for name in TABLES if (table := getattr(self, name)) is not None}


if TYPE_CHECKING:
    Tables = TablesSection
else:
    _KEYS = {name: (entry.kind | None, Field(default=None, description=entry.about)) for name, entry in TABLES.items()}
    Tables = create_model("Tables", __base__=TablesSection, __doc__=TablesSection.__doc__, **_KEYS)
