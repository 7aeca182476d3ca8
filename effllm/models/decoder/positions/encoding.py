"""What a position encoding says of itself."""

from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.decoder.component import Component

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effllm.models.decoder.config import EffConfig
    from effllm.models.decoder.positions.layers import RelativeBias


class Position(Component):
    """One position encoding. The base class itself encodes none.

    uses_mask: whether attention adds `Sequence.mask` to its scores, and not a bias of its own.
    """

    uses_mask: ClassVar[bool] = True

    def check_head(self, rotary_dim: int) -> None:
        """Raise ValueError where dimensions of a head that the attention offers for rotation cannot be rotated."""

    def check_length(self, config: "EffConfig", tokens: int) -> None:
        """Raise ValueError for a sequence that is longer than the encoding reaches."""

    def embedding(self, config: "EffConfig") -> "nn.Module | None":
        """What is added to the token embedding: forward(embeddings, position_ids); None for nothing."""
        return None

    def angles(self, config: "EffConfig", position_ids: "Tensor", dim: int) -> "tuple[Tensor, Tensor] | None":
        """Cosine and sine by which `dim` dimensions of queries and keys are rotated, each [batch, 1, length, dim / 2].

        `position_ids` is [batch, length]. None for an encoding that rotates nothing.
        """
        return None

    def bias(self, config: "EffConfig") -> "RelativeBias | None":
        """What each attention layer adds to its scores by distance; None for nothing."""
        return None

    def embedding_parameters(self, config: Any) -> int:
        """Parameters of `embedding`."""
        return 0

    def layer_parameters(self, config: Any) -> int:
        """Parameters of `bias`, in each layer."""
        return 0

    def transformers_keys(self, config: Any) -> dict[str, Any] | None:
        """Its keys in Transformers' own configurations; None for an encoding that they do not have."""
        return None
