"""What the columns of each table mean for a decision, by the name of the table."""

from effllm.tables.description import Description
from effllm.tables.kinds import TABLES

DESCRIPTIONS: dict[str, Description] = {name: entry.kind.columns for name, entry in TABLES.items()}
