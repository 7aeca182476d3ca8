"""The decoder's configuration: Qwen2.5's backbone and the choice of attention, position and feed-forward."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from effllm.study.decoder_shape import (
    Attention,
    FeedForward,
    Position,
    check_decoder_shape,
    default_key_value_heads,
    require_multiple,
)


@strict
class EffConfig(PreTrainedConfig):
    """Configuration of `EffForCausalLM`; keys that Qwen2 has too mean what they mean there.

    Every attention has `num_attention_heads` query heads. `mha` keeps as many key and value heads, `mqa` one, `gqa` and
    `nsa` `num_key_value_heads`, 2 unless given, as Qwen2.5 has up to 3B; `mla` caches one latent for all heads.
    `head_dim` is `hidden_size` divided by the heads unless given; MLA has its own widths. Windows, blocks, strides and
    distances are in tokens, `nsa_*_blocks` in blocks.

    Raises ValueError, with the key and the remedy, for shapes that do not divide.
    """

    model_type = "effllm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 151936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    attention: str = "gqa"
    position: str = "rope"
    feed_forward: str = "swiglu"

    rope_theta: float = 1e6
    relative_attention_max_distance: int = 128

    kv_lora_rank: int | None = None
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128

    nsa_window: int = 128
    nsa_compression_block: int = 64
    nsa_compression_stride: int = 32
    nsa_selection_block: int = 64
    nsa_selected_blocks: int = 4
    nsa_initial_blocks: int = 1
    nsa_local_blocks: int = 2

    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None
    router_aux_loss_coef: float = 0.01
    output_router_logits: bool = False

    def __post_init__(self, **kwargs):
        _one_of("attention", self.attention, Attention)
        _one_of("position", self.position, Position)
        _one_of("feed_forward", self.feed_forward, FeedForward)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = default_key_value_heads(self.attention, self.num_attention_heads)
        if self.head_dim is None:
            require_multiple("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.kv_lora_rank is None:
            self.kv_lora_rank = max(1, self.hidden_size // 8)
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        check_decoder_shape(self)
        super().__post_init__(**kwargs)


def _one_of(key: str, value: str, choices) -> None:
    if value not in choices.__args__:
        raise ValueError(f"{key} {value!r} is none of {', '.join(choices.__args__)}: choose one of them")
