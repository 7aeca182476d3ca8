"""Learned absolute positions (Radford et al. 2018)."""

from typing import TYPE_CHECKING, Any

from effllm.models.decoder.positions.encoding import Position

if TYPE_CHECKING:
    from torch import nn

    from effllm.models.decoder.config import EffConfig


class Learned(Position):
    """A table of max_position_embeddings rows is added to the token embedding."""

    def check_length(self, config: "EffConfig", tokens: int) -> None:
        if tokens > config.max_position_embeddings:
            raise ValueError(
                f"{tokens} tokens exceed max_position_embeddings {config.max_position_embeddings} of the "
                "learned positions: shorten the text, or train with a larger table"
            )

    def embedding(self, config: "EffConfig") -> "nn.Module":
        from effllm.models.decoder.positions.layers import LearnedEmbedding

        return LearnedEmbedding(config)

    def embedding_parameters(self, config: Any) -> int:
        return config.max_position_embeddings * config.hidden_size
