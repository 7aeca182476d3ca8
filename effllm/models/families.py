"""From a study's architecture to a Transformers configuration and a randomly initialised model."""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

from effllm.errors import UserError
from effllm.models.architectures import (
    Architecture,
    DecoderArchitecture,
    GptNeoxArchitecture,
    LlamaArchitecture,
    Mamba2Architecture,
    MambaArchitecture,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def model_config(shape: Architecture, vocab_size: int, **tokens: int | None) -> PreTrainedConfig:
    """The configuration of this shape over `vocab_size` words; `tokens` are pad_token_id, bos_token_id, eos_token_id.

    Raises UserError if the shape's own vocab_size is smaller.
    """
    if shape.vocab_size is not None:
        if shape.vocab_size < vocab_size:
            raise UserError(
                f"architecture.vocab_size: {shape.vocab_size} is less than the {vocab_size} words of the tokenizer; "
                "raise it, or leave the key out."
            )
        vocab_size = shape.vocab_size
    if isinstance(shape, DecoderArchitecture):
        from effllm.models.decoder import EffConfig

        settings: dict[str, Any] = {**shape.settings(), **tokens}
        return EffConfig(vocab_size=vocab_size, **settings)
    return AutoConfig.for_model(
        shape.model_type,
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        initializer_range=shape.initializer_range,
        **_family_settings(shape),
        **tokens,
    )


def random_model(config: PreTrainedConfig, seed: int) -> "PreTrainedModel":
    """A float32 model of this configuration, its weights drawn with `seed`."""
    # A configuration alone, which a plan of a study needs, costs a third of the import of models.
    from transformers import AutoModelForCausalLM, set_seed

    # The Auto classes know the decoder's model from here on.
    import effllm.models.decoder.model  # noqa: F401

    set_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def _family_settings(shape: Architecture) -> dict[str, Any]:
    if isinstance(shape, LlamaArchitecture):
        keys = (
            "intermediate_size num_attention_heads num_key_value_heads max_position_embeddings rms_norm_eps "
            "tie_word_embeddings"
        )
        rotary = {"rope_type": "default", "rope_theta": shape.rope_theta}
        return {key: getattr(shape, key) for key in keys.split()} | {"rope_parameters": rotary}
    if isinstance(shape, GptNeoxArchitecture):
        keys = "intermediate_size num_attention_heads max_position_embeddings"
        return {key: getattr(shape, key) for key in keys.split()}
    if isinstance(shape, MambaArchitecture):
        # Without CUDA kernels Transformers scans token by token; this scan is parallel.
        return {"use_mambapy": True}
    if isinstance(shape, Mamba2Architecture):
        keys = "expand head_dim num_heads state_size n_groups chunk_size"
        return {key: getattr(shape, key) for key in keys.split()} | {"tie_word_embeddings": True}
    return {"intermediate_size": shape.intermediate_size, "context_length": shape.max_position_embeddings}
