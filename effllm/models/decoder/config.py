"""The decoder's configuration as Transformers takes it."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from effllm.models.architecture import optional_keys
from effllm.models.decoder.architecture import DecoderArchitecture, check, fill_in
from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.feed_forward import FEED_FORWARD
from effllm.models.decoder.positions import POSITIONS

_Keys = optional_keys(DecoderArchitecture)


@strict
class EffConfig(PreTrainedConfig, _Keys):  # type: ignore[misc, valid-type]  # made when this runs
    """Configuration of `EffForCausalLM`; keys that Qwen2 has too mean what they mean there.

    `DecoderArchitecture` has the keys of attention, position and feed-forward, with defaults and descriptions. Keys
    that a study must give have the values of Qwen2.5-1.5B here.

    Raises ValueError, with the key and the remedy, for shapes that do not divide.
    """

    model_type = "effllm"
    # Not a key: models that share the attention layers have one.
    attention_output_bias: ClassVar[bool] = False
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 151936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    max_position_embeddings: int = 8192
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    output_router_logits: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for key, registry in (("attention", ATTENTION), ("position", POSITIONS), ("feed_forward", FEED_FORWARD)):
            if getattr(self, key) not in registry:
                raise ValueError(f"{key} {getattr(self, key)!r} is none of {', '.join(registry)}: choose one of them")
        fill_in(self)
        check(self)
        super().__post_init__(**kwargs)


AutoConfig.register(EffConfig.model_type, EffConfig)
