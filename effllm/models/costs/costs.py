"""Parameters, FLOPs and bytes of a causal language model, from its configuration alone.

Conventions
- FLOPs are those of matrix products, 2 per multiply-add; norms, activations, softmax, convolutions and elementwise
  scans are left out. Backward costs twice forward, and recomputed activations are not counted: model FLOPs, as MFU
  needs them (Chowdhery et al. 2022, appendix B).
- So training costs 6 per token and active weight of a product. Embeddings are look-ups and count nothing; the output
  head counts, tied or not.
- Attention counts 6 * layers * heads * (d_qk + d_v) * T per token: causality is not halved.
- A mixture counts its router and the chosen experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllm.models.costs.decoders import describe_decoder, describe_gpt_neox, describe_llama
from effllm.models.costs.recurrent import describe_mamba, describe_mamba2, describe_rwkv
from effllm.models.terms import Description

if TYPE_CHECKING:
    import torch

    from effllm.models.costs.shapes import Shape

_DESCRIBE: dict[str, Callable[[Any], Description]] = {
    "effllm": describe_decoder,
    "llama": describe_llama,
    "mistral": describe_llama,
    "qwen2": describe_llama,
    "phi3": describe_llama,
    "gpt_neox": describe_gpt_neox,
    "mamba": describe_mamba,
    "mamba2": describe_mamba2,
    "rwkv": describe_rwkv,
}


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, a tied head counted once.

    active: those that one token uses: of the experts, the chosen ones. embedding: the input tables.
    """

    total: int
    active: int
    embedding: int


def has_formulas(config: "Shape") -> bool:
    """Whether the terms of this architecture are written down here."""
    return config.model_type in _DESCRIBE


def describe(config: "Shape") -> Description:
    """The model's terms; raises ValueError for an architecture whose terms are not written down here."""
    if config.model_type not in _DESCRIBE:
        raise ValueError(
            f"model_type {config.model_type} has no cost formulas: use one of {', '.join(sorted(_DESCRIBE))}, or "
            "describe it in effllm/models/costs"
        )
    return _DESCRIBE[config.model_type](config)


def parameter_count(config: "Shape") -> ParameterCount:
    """Parameters of the model, as `sum(p.numel() for p in model.parameters())` would count them."""
    model = describe(config)
    outside = model.embedding_parameters + model.head_parameters + model.other_parameters
    return ParameterCount(
        total=outside + model.num_layers * model.layer.parameters,
        active=outside + model.num_layers * model.layer.active_parameters,
        embedding=model.embedding_parameters,
    )


def forward_flops(config: "Shape", sequence_length: int) -> int:
    """FLOPs of the forward pass over one sequence, with logits at every position."""
    model = describe(config)
    mixing = model.num_layers * model.layer.mixer.forward_flops(sequence_length)
    return 2 * _matmul_parameters(model) * sequence_length + mixing


def training_flops(config: "Shape", sequence_length: int) -> int:
    """FLOPs of forward and backward over one sequence, every parameter trained."""
    return 3 * forward_flops(config, sequence_length)


def adapter_training_flops(config: "Shape", sequence_length: int, adapter_parameters: int) -> int:
    """The same with fixed weights and trained low-rank matrices of `adapter_parameters` in all.

    Fixed weights have the products of the forward pass and those that pass the gradient on: 4 per token and weight, and
    6 per token and weight of the adapter. The gradient is counted down to the first layer's input, though what lies
    below the first adapter does without it; DoRA's norm of the updated weight, once per batch, is not.
    """
    model = describe(config)
    mixing = model.num_layers * model.layer.mixer.forward_flops(sequence_length)
    return (4 * _matmul_parameters(model) + 6 * adapter_parameters) * sequence_length + 3 * mixing


def upper_training_flops(config: "Shape", sequence_length: int, frozen_layers: int, head_is_trained: bool) -> int:
    """The same with the first layers fixed, at which the backward pass ends, and the head fixed or not."""
    model = describe(config)
    layer = 2 * model.layer.matmul_parameters * sequence_length + model.layer.mixer.forward_flops(sequence_length)
    head = 2 * model.vocab_size * model.hidden_size * sequence_length
    trained = model.num_layers - frozen_layers
    return model.num_layers * layer + head + 2 * trained * layer + (2 if head_is_trained else 1) * head


def decoding_flops(config: "Shape", context_length: int) -> int:
    """FLOPs of generating one token with a cache, when it sees `context_length` tokens, itself among them."""
    model = describe(config)
    return 2 * _matmul_parameters(model) + model.num_layers * model.layer.mixer.decoding_flops(context_length)


def cache_bytes(config: "Shape", context_length: int, dtype: "torch.dtype") -> int:
    """Bytes of cache or recurrent state of one sequence after `context_length` tokens, all in `dtype`.

    RWKV and Mamba keep parts of their states in float32 whatever the model's type.
    """
    model = describe(config)
    return model.num_layers * model.layer.mixer.cache_elements(context_length) * dtype.itemsize


def cache_bytes_per_token(config: "Shape", dtype: "torch.dtype", context_length: int) -> float:
    """Bytes by which one more token makes the cache grow near `context_length` tokens; 0 for a recurrent state.

    Averaged over a thousand tokens, since NSA adds a compressed entry once per stride only.
    """
    span = 1024
    grown = cache_bytes(config, context_length + span, dtype) - cache_bytes(config, context_length, dtype)
    return grown / span


def weights_read(config: "Shape", stored_bytes: int, dtype: "torch.dtype") -> int:
    """Bytes of the weights that every decoding step reads, of `stored_bytes` on disk.

    Input tables stay in `dtype` when the others are packed, and of them a step reads rows. ValueError for mixtures of
    experts: how many a step reads depends on its tokens.
    """
    count = parameter_count(config)
    if count.active != count.total:
        raise ValueError("how many experts a decoding step reads depends on its tokens")
    tables = 0 if config.tie_word_embeddings else count.embedding
    return stored_bytes - tables * dtype.itemsize


def weight_bytes(config: "Shape", dtype: "torch.dtype") -> int:
    """Bytes of the weights in `dtype`."""
    return parameter_count(config).total * dtype.itemsize


def optimizer_bytes(config: "Shape") -> int:
    """Bytes of AdamW's two float32 moments of every parameter."""
    return 2 * 4 * parameter_count(config).total


def activation_bytes(
    config: "Shape", batch_size: int, sequence_length: int, dtype: "torch.dtype", checkpointing: bool = False
) -> int:
    """Bytes that the forward pass keeps for the backward pass in eager PyTorch with a fused attention kernel.

    Counted tensor by tensor for this package's decoder; for other architectures an estimate in the same terms.
    With `checkpointing` every layer keeps its input only, and one layer at a time is held in full. The loss keeps one
    number per token and word, which at 150,000 words outweighs a layer.
    """
    model = describe(config)
    tokens = batch_size * sequence_length
    per_layer = tokens * model.layer.saved_elements * dtype.itemsize
    layers = model.num_layers * per_layer
    if checkpointing:
        layers = model.num_layers * tokens * model.hidden_size * dtype.itemsize + per_layer
    head = tokens * (3 * model.hidden_size + model.vocab_size) * dtype.itemsize
    return layers + head


def _matmul_parameters(model: Description) -> int:
    return model.num_layers * model.layer.matmul_parameters + model.vocab_size * model.hidden_size
