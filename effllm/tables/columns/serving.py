"""The columns of the table of models under load."""

from effllm.tables.columns.shared import CONDITIONS, ENERGY_CONDITIONS, STATUS, WINDOW
from effllm.tables.description import Better, Column, Description

LATENCIES = {
    "ttft": "time to the first token",
    "tpot": "time of a token after the first",
    "itl": "time between tokens",
    "e2e": "time to the last token",
}
PERCENTILES = {"p50": "median", "p90": "90th percentile", "p99": "99th percentile"}


def _with_interval(name: str, unit: str, label: str, better: Better) -> Column:
    return Column(name, "cost", unit, label, better, (f"{name}_low", f"{name}_high"))


SERVING = Description(
    title="models under load",
    names=("served", "precision"),
    subject="served",
    signature=("max_rate_per_s", "ttft_ms_p50"),
    quality="average_performance",
    costs=("max_rate_per_s", "ttft_ms_p90", "tpot_ms_p50", "energy_J_per_output_token"),
    scope=(
        "load", "arrivals", "prompt_tokens", "output_tokens", "slo", "engine", "device", "device_id", "energy_source",
        "energy_scope", "AMU_scope", "threads", "software",
    ),
    declared=(
        Column("served", "name"),
        Column("precision", "name"),
        Column(
            "average_performance", "quality", label="average performance", better="higher",
            interval=("average_performance_low", "average_performance_high"), points=True,
        ),
        _with_interval("max_rate_per_s", "requests/s", "largest rate that meets the SLO", "higher"),
        Column("max_rate_between", "condition"),
        Column("requests_per_s", "cost", "requests/s", "answered requests", "higher"),
        Column("input_tokens_per_s", "cost", "tokens/s", "input throughput", "higher"),
        Column("output_tokens_per_s", "cost", "tokens/s", "output throughput", "higher"),
        Column("goodput_requests_per_s", "cost", "requests/s", "requests within the SLO", "higher"),
        _with_interval("slo_share", "", "share of requests within the SLO", "higher"),
        *(
            _with_interval(f"{latency}_ms_{percentile}", "ms", f"{label} ({which})", "lower")
            for latency, label in LATENCIES.items()
            for percentile, which in PERCENTILES.items()
        ),
        Column(
            "energy_J_per_output_token", "cost", "J", "energy of an output token", "lower", conditions=ENERGY_CONDITIONS
        ),
        Column(
            "energy_above_idle_J_per_output_token", "cost", "J", "energy above idle of an output token", "lower",
            conditions=ENERGY_CONDITIONS,
        ),
        Column("decode_mbu", "cost", label="decoding bandwidth utilisation", better="higher"),
        *WINDOW,
        Column("idle_W", "condition", label="power of the idle engine"),
        Column("cache_mean", "condition", label="share of the cache in use"),
        Column("cache_peak", "condition", label="highest share of the cache in use"),
        Column("running_mean", "condition", label="requests computed together"),
        Column("waiting_peak", "condition", label="most requests that waited"),
        Column("preemptions", "cost", "", "requests put back for lack of cache", "lower"),
        Column("saturated_requests_per_s", "cost", "requests/s", "saturated rate", "higher"),
        Column("greedy_identical", "condition", label="requests with the tokens of one alone"),
        Column("model", "condition"),
        Column("load", "condition"),
        Column("offered_requests_per_s", "condition", label="offered rate"),
        Column("concurrency", "condition"),
        Column("arrivals", "condition"),
        Column("prompt_tokens", "condition"),
        Column("output_tokens", "condition"),
        Column("slo", "condition", label="SLO"),
        Column("requests", "condition"),
        Column("completed", "condition"),
        Column("dispatch_lag_ms_p99", "condition"),
        Column("client_cpu", "condition"),
        Column("engine", "condition"),
        *CONDITIONS,
        Column("devices", "condition"),
        Column("window_s", "condition"),
        *STATUS,
    ),
)  # fmt: skip
