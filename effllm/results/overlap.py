"""overlap.json: how much of a benchmark's items stands in the text that models were trained on."""

from typing import ClassVar

from pydantic import Field

from effllm.results.base import Part, ResultFile
from effllm.results.telemetry import Finding

COVERED = 0.8
"""The share of its grams from which on an item counts as one that training text has."""


class ItemsOverlap(Part, ResultFile):
    """The items of one benchmark against the training part of one corpus."""

    FILE: ClassVar[str] = "overlap.json"

    benchmark: str = Field(description="Id of the benchmark.")
    corpus: str = Field(description="Id of the corpus.")
    training_documents: int = Field(description="Documents that were compared: all of its training part.")
    words_per_gram: int = Field(description="Words in a gram.")
    items: int = Field(description="Items of the benchmark.")
    items_without_words: int = Field(description="Of those, without a gram, and so in no figure below.")
    covered_share: float = Field(description="The share of its grams from which on an item counts as covered.")
    items_covered: int = Field(description="Items of whose grams at least that share occurs in training text.")
    mean_share: float | None = Field(description="Mean over items of the share that occurs; null without a gram.")

    def findings(self) -> list[Finding]:
        """A warning if training text has items."""
        if not self.items_covered:
            return []
        message = (
            f"{self.items_covered} of {self.items} items of {self.benchmark} have at least {self.covered_share:.0%} of "
            f"their word {self.words_per_gram}-grams in the training text of {self.corpus}"
        )
        return [Finding("items_in_training", "warning", message)]
