"""The columns of Tables 3 to 6, and of orders of training."""

from effllm.tables.columns.shared import ENERGY_CONDITIONS, TRAINING, TRAINING_SCOPE
from effllm.tables.description import Column, Description

# Equal where the text and the tokenizer are: losses per token compare nowhere else.
_TEXT = ("held_out_tokens",)

PRETRAINING = Description(
    title="architectures",
    names=("method", "parameters"),
    subject="parameters",
    signature=("PPL", "AL_s_per_iter"),
    quality="PPL",
    costs=("AL_s_per_iter", "memory_peak_GB", "energy_J_per_token"),
    scope=("context", "global_batch", "tokens_seen", "held_out_tokens", *TRAINING_SCOPE),
    declared=(
        Column("method", "name"),
        Column("parameters", "name"),
        Column(
            "PPL", "quality", label="perplexity", better="lower", interval=("PPL_low", "PPL_high"), conditions=_TEXT
        ),
        Column("PPL_seeds_low", "bound"),
        Column("PPL_seeds_high", "bound"),
        Column("held_out_loss", "quality", "nats/token", "held-out loss", "lower", conditions=_TEXT),
        Column("held_out_bits_per_byte", "quality", "bits/byte", "held-out bits per byte", "lower"),
        *TRAINING,
        Column("TT_tokens_per_param_s", "cost", "tokens/(parameter s)", "throughput per parameter", "higher"),
        Column("energy_J_per_token", "cost", "J", "energy per token", "lower", conditions=ENERGY_CONDITIONS),
        Column("cache_bytes_per_token", "cost", "bytes", "cache per token", "lower"),
        Column("top_k", "setting"),
        Column("parameters_active", "cost", label="active parameters", better="lower"),
        Column("parameters_without_embeddings", "cost", label="parameters without embeddings", better="lower"),
        Column("global_batch", "setting"),
        Column("order", "setting"),
        Column("compile", "setting"),
        Column("kernel", "setting"),
        Column("held_out_tokens", "condition"),
        Column("tokens_seen", "condition"),
        Column("runs", "condition"),
        Column("seeds", "condition"),
    ),
)
