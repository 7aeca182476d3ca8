"""What a model costs, computed from its configuration without building it."""

from effllm.models.costs.costs import (
    ParameterCount,
    activation_bytes,
    adapter_training_flops,
    cache_bytes,
    cache_bytes_per_token,
    decoding_flops,
    describe,
    forward_flops,
    has_formulas,
    optimizer_bytes,
    parameter_count,
    training_flops,
    upper_training_flops,
    weight_bytes,
    weights_read,
)

__all__ = [
    "ParameterCount",
    "activation_bytes",
    "adapter_training_flops",
    "cache_bytes",
    "cache_bytes_per_token",
    "decoding_flops",
    "describe",
    "forward_flops",
    "has_formulas",
    "optimizer_bytes",
    "parameter_count",
    "training_flops",
    "upper_training_flops",
    "weight_bytes",
    "weights_read",
]
