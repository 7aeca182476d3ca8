"""The diffusion transformer's configuration as Transformers takes it."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from effllm.models.architecture import optional_keys
from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.feed_forward import FEED_FORWARD
from effllm.models.dit.architecture import DiTArchitecture, check, fill_in

_Keys = optional_keys(DiTArchitecture)


@strict
class DiTConfig(PreTrainedConfig, _Keys):  # type: ignore[misc, valid-type]  # made when this runs
    """Configuration of `DiT`; `DiTArchitecture` describes the keys. Those without a default there are XL/2's here.

    Raises ValueError, with the key and the remedy, for shapes that do not divide.
    """

    model_type = "effllm_dit"
    # What the decoder's layers ask for, and a diffusion transformer has no choice of.
    position: ClassVar[str] = "none"
    rms_norm_eps: ClassVar[float] = 1e-6
    attention_output_bias: ClassVar[bool] = True

    image_size: int = 32
    channels: int = 4
    patch_size: int = 2
    classes: int = 1000
    hidden_size: int = 1152
    num_hidden_layers: int = 28
    num_attention_heads: int = 16

    def __post_init__(self, **kwargs: Any) -> None:
        for key, registry in (("attention", ATTENTION), ("feed_forward", FEED_FORWARD)):
            if getattr(self, key) not in registry:
                raise ValueError(f"{key} {getattr(self, key)!r} is none of {', '.join(registry)}: choose one of them")
        fill_in(self)
        check(self)
        super().__post_init__(**kwargs)


AutoConfig.register(DiTConfig.model_type, DiTConfig)
