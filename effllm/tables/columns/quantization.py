"""The columns of Table 9."""

from effllm.quantization import setting_columns
from effllm.tables.columns.shared import CONDITIONS, ENERGY_CONDITIONS, MEMORY_CONDITIONS, STATUS, WINDOW
from effllm.tables.description import Column, Description

_AVERAGE = ("average_performance_low", "average_performance_high")

QUANTIZATION = Description(
    title="precisions",
    names=("model", "precision"),
    subject="model",
    signature=("average_performance", "MCR"),
    quality="average_performance",
    costs=("latency_ms", "memory_peak_GB", "energy_J_per_token"),
    scope=("device", "device_id", "energy_source", "energy_scope", "AMU_scope", "threads", "software"),
    declared=(
        Column("model", "name"),
        Column("precision", "name"),
        Column(
            "average_performance", "quality", label="average performance", better="higher", interval=_AVERAGE,
            points=True,
        ),
        Column("*_score", "quality", label="score", interval=("*_low", "*_high"), points=True, direction="*_better"),
        Column("*_chance", "condition", label="score of guessing"),
        # Figures against another precision of the same model already.
        Column("*_divergence_from", "condition", label="compared with"),
        Column(
            "*_kl_nats", "quality", "nats", "KL divergence per token", "lower",
            interval=("*_kl_nats_low", "*_kl_nats_high"), is_change=True,
        ),
        Column("*_kl_nats_stderr", "condition", label="standard error of the KL divergence"),
        Column(
            "*_ppl_ratio", "quality", label="ratio of perplexities", better="lower",
            interval=("*_ppl_ratio_low", "*_ppl_ratio_high"), is_change=True,
        ),
        Column("*_nll_change_nats", "quality", "nats", "change of loss per token", "lower", is_change=True),
        Column("*_nll_change_nats_stderr", "condition", label="standard error of the change of loss"),
        Column("*_same_top_token", "quality", label="same likeliest token", better="higher", is_change=True),
        *WINDOW,
        Column("latency_ms", "cost", "ms", "latency", "lower", interval=("latency_ms_low", "latency_ms_high")),
        Column(
            "IT_tokens_per_s", "cost", "tokens/s", "throughput", "higher",
            interval=("IT_tokens_per_s_low", "IT_tokens_per_s_high"),
        ),
        Column("AL_sum_ms", "cost", "ms", "latency summed over benchmarks", "lower"),
        Column("first_token_ms_p50", "cost", "ms", "time to the first token (median)", "lower"),
        Column("first_token_ms_p95", "cost", "ms", "time to the first token (95th percentile)", "lower"),
        Column("token_ms_p50", "cost", "ms", "time between tokens (median)", "lower"),
        Column("token_ms_p95", "cost", "ms", "time between tokens (95th percentile)", "lower"),
        Column("prefill_tokens_per_s", "cost", "tokens/s", "prefill throughput", "higher"),
        Column("decode_tokens_per_s", "cost", "tokens/s", "decoding throughput", "higher"),
        Column("prefill_mfu", "cost", label="prefill model FLOPs utilisation", better="higher"),
        Column("decode_mbu", "cost", label="decoding bandwidth utilisation", better="higher"),
        Column("energy_J_per_token", "cost", "J", "energy per token", "lower", conditions=ENERGY_CONDITIONS),
        Column(
            "energy_above_idle_J_per_token", "cost", "J", "energy above idle per token", "lower",
            conditions=ENERGY_CONDITIONS,
        ),
        Column(
            "decode_energy_J_per_token", "cost", "J", "decoding energy per token", "lower",
            conditions=ENERGY_CONDITIONS,
        ),
        Column("*_latency_ms", "cost", "ms", "latency", "lower"),
        Column("*_IT_tokens_per_s", "cost", "tokens/s", "throughput", "higher"),
        Column("*_prefill_tokens_per_s", "cost", "tokens/s", "prefill throughput", "higher"),
        Column("*_decode_tokens_per_s", "cost", "tokens/s", "decoding throughput", "higher"),
        Column("*_memory_peak_GB", "cost", "GB", "peak memory", "lower", conditions=MEMORY_CONDITIONS),
        Column("*_AMU_GB", "cost", "GB", "average memory", "lower", conditions=MEMORY_CONDITIONS),
        Column("*_AEC_W", "cost", "W", "average power", "lower", conditions=ENERGY_CONDITIONS),
        Column("*_energy_J_per_token", "cost", "J", "energy per token", "lower", conditions=ENERGY_CONDITIONS),
        Column("*_decode_mbu", "cost", label="decoding bandwidth utilisation", better="higher"),
        Column("*_status", "status"),
        Column("MCR", "cost", label="model compression rate", better="higher"),
        Column("mcr_nominal", "cost", label="nominal compression rate", better="higher"),
        Column("mcr_measured", "cost", label="measured compression rate", better="higher"),
        Column("weight_bytes", "cost", "bytes", "size of the weights", "lower"),
        Column("quantized_layers_bytes", "cost", "bytes", "size of the quantized layers", "lower"),
        Column("quantized_layers_compression", "cost", label="compression of the quantized layers", better="higher"),
        *(Column(name, "setting") for name in setting_columns()),
        Column("calibration", "setting"),
        Column("kernel", "setting"),
        *CONDITIONS,
        Column("devices", "condition"),
        Column("placement", "condition"),
        Column("windows", "condition"),
        Column("windows_s", "condition"),
        *STATUS,
    ),
    # The same figures of the study's other workloads.
    workloads={
        "latency_ms": "*_latency_ms",
        "IT_tokens_per_s": "*_IT_tokens_per_s",
        "prefill_tokens_per_s": "*_prefill_tokens_per_s",
        "decode_tokens_per_s": "*_decode_tokens_per_s",
        "memory_peak_GB": "*_memory_peak_GB",
        "AMU_GB": "*_AMU_GB",
        "AEC_W": "*_AEC_W",
        "energy_J_per_token": "*_energy_J_per_token",
        "decode_mbu": "*_decode_mbu",
        "status": "*_status",
    },
    workload_costs=("latency_ms", "AMU_GB", "energy_J_per_token"),
    of_any_workload=(
        "AL_sum_ms", "MCR", "mcr_nominal", "mcr_measured", "weight_bytes", "quantized_layers_bytes",
        "quantized_layers_compression",
    ),
)  # fmt: skip
