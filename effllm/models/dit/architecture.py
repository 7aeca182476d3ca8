"""The shape of a diffusion transformer: its keys and defaults. Nothing here imports torch."""

from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import Count, Dimension, Layers, NameIn
from effllm.models.architecture import require_multiple
from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.feed_forward import FEED_FORWARD

# Widths of attention and experts follow from the shape where they are not given.
_MIXTURE_KEYS = FEED_FORWARD["moe"].keys


class DiTArchitecture(_MIXTURE_KEYS):  # type: ignore[misc, valid-type]  # known when this runs
    """A diffusion transformer (Peebles and Xie 2022) around a choice of attention and feed-forward.

    Blocks with adaLN-Zero, fixed sine and cosine positions of the grid, embeddings of timestep and label.
    """

    model_type: Literal["dit"] = Field(description="Family.")
    image_size: Dimension = Field(
        description="Height and width of what is generated, in pixels or numbers of a latent."
    )
    channels: Dimension = Field(description="Its channels.")
    patch_size: Dimension = Field(description="Height and width of a patch, which is a token.")
    classes: Count = Field(description="Labels; 0 for images without.")
    hidden_size: Dimension = Field(description="Width of the residual stream, a multiple of 4.")
    num_hidden_layers: Layers = Field(description="Number of blocks.")
    num_attention_heads: Dimension = Field(description="Number of query heads.")
    learned_sigma: bool = Field(
        default=True, description="Predict the variance of a step too, as ddpm takes it; flow does without."
    )
    attention: Annotated[str, NameIn(ATTENTION)] = Field(default="mha", description="As of the decoder.")
    feed_forward: Annotated[str, NameIn(FEED_FORWARD)] = Field(default="gelu", description="As of the decoder.")
    intermediate_size: Dimension | None = Field(
        default=None, description="Width of the feed-forward layer; null takes four times hidden_size."
    )
    num_key_value_heads: Dimension | None = Field(
        default=None, description="Key and value heads; null leaves the attention's own number (gqa and nsa: 2)."
    )
    head_dim: Dimension | None = Field(default=None, description="Width of a head; null divides hidden_size.")
    moe_intermediate_size: Dimension | None = Field(
        default=None,
        description="moe: width of an expert; null takes two thirds of intermediate_size, by which an expert's three "
        "matrices weigh as much as the two of gelu, in multiples of 8 as the grouped kernel wants.",
    )
    kv_lora_rank: Dimension | None = Field(
        default=None, description="mla: width of the latent; null takes hidden_size / 8."
    )
    qk_nope_head_dim: Dimension | None = Field(
        default=None, description="mla: width of each head's own keys; null takes head_dim."
    )
    qk_rope_head_dim: Dimension | None = Field(
        default=None, description="mla: width of the key that heads share; null takes half of head_dim."
    )
    v_head_dim: Dimension | None = Field(default=None, description="mla: width of values; null takes head_dim.")
    nsa_window: Dimension | None = Field(default=None, description="nsa: window; null takes two rows of the grid.")
    nsa_compression_block: Dimension | None = Field(
        default=None, description="nsa: tokens of a compressed block; null takes a row of the grid."
    )
    nsa_compression_stride: Dimension | None = Field(
        default=None, description="nsa: tokens between compressed blocks; null takes a compressed block."
    )
    nsa_selection_block: Dimension | None = Field(
        default=None, description="nsa: tokens of a selected block; null takes a row of the grid."
    )
    nsa_selected_blocks: Dimension | None = Field(
        default=None, description="nsa: blocks that a token sees in full; null takes a quarter of the grid, at least 2."
    )
    nsa_initial_blocks: Count = Field(default=0, description="nsa: of these, blocks at the start.")
    nsa_local_blocks: Dimension = Field(
        default=1, description="nsa: of these, the token's own block and nearer neighbours than this, on both sides."
    )

    own_keys: ClassVar[dict[str, tuple[str, str]]] = {
        "moe_": ("feed_forward", "moe"),
        "num_experts": ("feed_forward", "moe"),
        "router_": ("feed_forward", "moe"),
        "kv_lora_": ("attention", "mla"),
        "qk_": ("attention", "mla"),
        "v_head_": ("attention", "mla"),
        "nsa_": ("attention", "nsa"),
    }
    """By the beginning of a key, the part that has it."""

    @model_validator(mode="after")
    def _fits_together(self) -> "DiTArchitecture":
        self.shape()
        return self

    @model_serializer(mode="wrap")
    def _without_keys_of_others(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        others = tuple(begin for begin, (key, name) in self.own_keys.items() if getattr(self, key) != name)
        return {key: value for key, value in serialize(self).items() if not key.startswith(others)}

    def shape(self) -> SimpleNamespace:
        """All keys, with those that were left out."""
        shape = SimpleNamespace(**dict(self))
        fill_in(shape)
        check(shape)
        return shape

    def settings(self) -> dict[str, Any]:
        """The configuration's keys that were given; the others have the configuration's own defaults."""
        return self.model_dump(exclude={"model_type"}, exclude_none=True)


def side(shape: Any) -> int:
    """Patches in a row of the grid."""
    return shape.image_size // shape.patch_size


def fill_in(shape: Any) -> None:
    """Set the keys that are None to what they mean; ValueError where the shape does not divide."""
    require_multiple("patch_size", shape.patch_size, "image_size", shape.image_size)
    if shape.head_dim is None:
        require_multiple("num_attention_heads", shape.num_attention_heads, "hidden_size", shape.hidden_size)
        shape.head_dim = shape.hidden_size // shape.num_attention_heads
    rows = side(shape)
    meanings = {
        "intermediate_size": 4 * shape.hidden_size,
        "num_key_value_heads": ATTENTION[shape.attention].key_value_heads(shape.num_attention_heads),
        "kv_lora_rank": max(1, shape.hidden_size // 8),
        "qk_nope_head_dim": shape.head_dim,
        "qk_rope_head_dim": max(1, shape.head_dim // 2),
        "v_head_dim": shape.head_dim,
        "nsa_window": 2 * rows,
        "nsa_compression_block": rows,
        "nsa_selection_block": rows,
        "nsa_selected_blocks": max(2, rows // 4),
    }
    for key, value in meanings.items():
        if getattr(shape, key) is None:
            setattr(shape, key, value)
    if shape.nsa_compression_stride is None:
        shape.nsa_compression_stride = shape.nsa_compression_block
    if shape.moe_intermediate_size is None:
        shape.moe_intermediate_size = 8 * max(1, round(shape.intermediate_size / 12))


def check(shape: Any) -> None:
    """Raise ValueError, with the key and the remedy, for a shape that does not divide. `shape` is filled in."""
    require_multiple("4, for sines and cosines of rows and columns,", 4, "hidden_size", shape.hidden_size)
    ATTENTION[shape.attention].check(shape)
    FEED_FORWARD[shape.feed_forward].check(shape)
    if shape.attention != "nsa":
        return
    tokens = side(shape) ** 2
    if shape.nsa_compression_block > tokens:
        raise ValueError(
            f"nsa_compression_block {shape.nsa_compression_block} exceeds the {tokens} patches of an image: lower it"
        )
    forced = shape.nsa_initial_blocks + 2 * shape.nsa_local_blocks - 1
    if forced > shape.nsa_selected_blocks:
        raise ValueError(
            f"nsa_selected_blocks {shape.nsa_selected_blocks} is less than the {forced} blocks that nsa_initial_blocks "
            "and nsa_local_blocks (on both sides) always select: raise it"
        )
