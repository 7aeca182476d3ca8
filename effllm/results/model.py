"""model.json: what an imported model is, as it was read from its files."""

from typing import Any, ClassVar

from pydantic import Field

from effllm.results.base import Part, ResultFile


class TokenizerRecord(Part):
    """The tokenizer that comes with a model."""

    kind: str = Field(description="Its class in Transformers.")
    words: int = Field(description="Entries of its vocabulary, added tokens included.")
    bos_token_id: int | None = Field(description="What begins a text.")
    eos_token_id: int = Field(description="What ends a text.")
    pad_token_id: int | None = Field(description="What fills a batch.")
    adds_bos: bool = Field(description="Whether it puts a begin-of-text token before a text itself.")
    has_chat_template: bool = Field(description="Whether it has one.")
    beyond_embeddings: list[str] = Field(
        description="Tokens without a row in the model's input table, which stand for images or sounds."
    )


class ModelRecord(Part):
    """A model's weights and configuration."""

    architecture: str = Field(description="Its class in Transformers.")
    model_type: str = Field(description="Its family.")
    weights: dict[str, int] = Field(description="Numbers of weights by type.")
    bytes: int = Field(description="Theirs on disk.")
    tied_head: bool = Field(description="The output head is the input table.")
    context_length: int | None = Field(description="In tokens; null where nothing bounds it.")
    embedding_rows: int = Field(description="Rows of the input table.")
    is_composite: bool = Field(description="It holds more than its text decoder.")
    tokenizer: TokenizerRecord | None = Field(description="Null for random weights.")


class ModelSummary(Part, ResultFile):
    """What a model is and where it is from."""

    FILE: ClassVar[str] = "model.json"

    model: ModelRecord = Field(description="Read from its files.")
    source: dict[str, Any] = Field(description="As the study states it.")
    unscored: str | None = Field(description="Why no score of it means anything; null where one does.")


class GeneratorSummary(Part, ResultFile):
    """What a pipeline for images or videos is and where it is from."""

    FILE: ClassVar[str] = "generator.json"

    family: str = Field(description="sd3 or wan.")
    parameters: dict[str, int] = Field(description="By the part of the pipeline.")
    side_step: int = Field(description="Of what the sides of images are to be multiples, in pixels.")
    frame_step: int = Field(description="Of what frames are to be multiples, the first one apart.")
    source: dict[str, Any] = Field(description="As the study states it.")
