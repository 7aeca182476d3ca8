"""What a model is, as it was read from its files: the artifact's `model.json`."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that comes with a model.

    words: entries of its vocabulary, added tokens included. beyond_embeddings: tokens without a row in the model's
    input table, which stand for images or sounds and not for text.
    """

    kind: str
    words: int
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    adds_bos: bool
    has_chat_template: bool
    beyond_embeddings: list[str]


@dataclass(frozen=True)
class ModelRecord:
    """A model's weights and configuration.

    architecture: its class in Transformers. weights: numbers of weights by type. bytes: theirs on disk. tied_head: the
    output head is the input table. context_length: in tokens; None where nothing bounds it. embedding_rows: rows of
    the input table. is_composite: the model holds more than its text decoder. tokenizer: None for random weights.
    """

    architecture: str
    model_type: str
    weights: dict[str, int]
    bytes: int
    tied_head: bool
    context_length: int | None
    embedding_rows: int
    is_composite: bool
    tokenizer: TokenizerRecord | None

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)
