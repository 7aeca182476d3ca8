"""Orders of the windows of a token stream: by which measure, of which stream, in windows of which length.

To add a measure: a subclass of `DocumentMeasure`, and its line in `MEASURES`. Nothing heavy is imported here, because
every parse of the workflow reads it.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from effllm.data.order import texts
from effllm.fields import Dimension, FormOf, Id, Section


class Measure(Section):
    """What says how hard a window is: the higher its value, the harder."""

    kind: str


class DocumentMeasure(Measure, ABC):
    """A measure of the documents of a corpus.

    column: the corpus's column that it reads.
    """

    column: ClassVar[str] = "text"

    @abstractmethod
    def of(self, value: Any) -> float | None:
        """The difficulty of the document with this value in the column; None where it has none."""


class ScoreMeasure(DocumentMeasure):
    """The educational score of the source (column `score`): what scores higher counts as harder."""

    kind: Literal["score"]
    column: ClassVar[str] = "score"

    def of(self, value: float | None) -> float | None:
        return value


class CompressionMeasure(DocumentMeasure):
    """Compressed over plain size, by gzip: what repeats itself less is harder."""

    kind: Literal["compression"]
    level: Annotated[int, Field(ge=1, le=9)] = Field(default=6, description="Level of the compressor.")

    def of(self, value: str) -> float:
        return texts.compression_ratio(value, self.level)


class ReadabilityMeasure(DocumentMeasure):
    """Minus Flesch's reading ease, a formula for English: longer sentences and words are harder."""

    kind: Literal["readability"]

    def of(self, value: str) -> float | None:
        ease = texts.flesch_reading_ease(value)
        return None if ease is None else -ease


class DiversityMeasure(DocumentMeasure):
    """Lexical diversity by MTLD: what repeats its words less is harder."""

    kind: Literal["lexical_diversity"]

    def of(self, value: str) -> float | None:
        return texts.lexical_diversity(value)


class LengthMeasure(Measure):
    """Tokens of a document: longer ones are harder."""

    kind: Literal["length"]


class LossMeasure(Measure):
    """Mean loss of a trained run on the window itself, in nats per token: what it predicts worse is harder."""

    kind: Literal["loss"]
    run: Id = Field(description="Id of the pretraining run, with the tokenizer of the stream.")
    batch_size: Annotated[Dimension, Field(le=65_536)] = Field(default=8, description="Windows per forward pass.")


MEASURES: dict[str, type[Measure]] = {
    "score": ScoreMeasure,
    "length": LengthMeasure,
    "compression": CompressionMeasure,
    "readability": ReadabilityMeasure,
    "lexical_diversity": DiversityMeasure,
    "loss": LossMeasure,
}


class Order(Section):
    """How hard the windows of a token stream are; runs say in which order they take them.

    A window that holds parts of several documents has the mean of their values, weighted by their tokens in it.
    """

    tokens: Id = Field(description="Id of the token stream.")
    sequence_length: Dimension = Field(description="Tokens of a window: the sequence_length of the runs.")
    by: Annotated[Measure, FormOf(MEASURES)] = Field(
        description="The measure: score, length, compression, readability, lexical_diversity or loss."
    )
