"""Latency and throughput of inference from the times of its repeats."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from effllm.profiling.decoding import Repeat
from effllm.study.measure import InferenceProtocol
from effllm.telemetry.metrics import mean_ci95

PERCENTILES = (50, 95, 99)


def latency_figures(repeats: Sequence[Repeat], protocol: InferenceProtocol) -> dict[str, Any]:
    """Figures of the workload; `..._ci95` are [low, high] of the mean over repeats (Student's t).

    `latency_ms` is AL, the mean time of one generation; `throughput_tokens_per_s` is IT, all generated tokens over
    all the time, prefill included; decoding alone is `decode_tokens_per_s`.
    """
    totals_ms = [repeat.total_s * 1e3 for repeat in repeats]
    first_ms = [repeat.first_token_s * 1e3 for repeat in repeats]
    token_ms = [seconds * 1e3 for repeat in repeats for seconds in repeat.token_s]
    rates = [repeat.generated_tokens / repeat.total_s for repeat in repeats]
    generated = sum(repeat.generated_tokens for repeat in repeats)
    decoded = generated - len(repeats) * protocol.batch_size
    _, latency_low, latency_high = mean_ci95(totals_ms)
    _, rate_low, rate_high = mean_ci95(rates)
    figures = {
        "decode_tokens_per_s": decoded / sum(sum(repeat.token_s) for repeat in repeats),
        "generated_tokens": generated,
        "latency_ms": float(np.mean(totals_ms)),
        "latency_ms_ci95": [latency_low, latency_high],
        "prefill_tokens_per_s": protocol.batch_size
        * protocol.prompt_tokens
        * len(repeats)
        / sum(repeat.first_token_s for repeat in repeats),
        "throughput_tokens_per_s": generated / sum(repeat.total_s for repeat in repeats),
        "throughput_tokens_per_s_ci95": [rate_low, rate_high],
    }
    for percentile in PERCENTILES:
        figures[f"first_token_ms_p{percentile}"] = float(np.percentile(first_ms, percentile))
        figures[f"token_ms_p{percentile}"] = float(np.percentile(token_ms, percentile))
    return figures
