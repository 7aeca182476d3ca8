"""The efficiency metrics of arXiv 2505.13840, as its equations give them, and the ones that interpret them.

Pure functions of numbers. Times are in s, memory in any one unit, power in W, energy in J. A metric that cannot be
computed honestly is None; arguments that make no sense raise ValueError.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from effllm.telemetry.peaks import peak_bandwidth_b_per_s, peak_flops_per_s


def _sum_s(times_s: Sequence[float]) -> float:
    total_s = math.fsum(times_s)
    if len(times_s) == 0 or total_s <= 0 or min(times_s) < 0:
        raise ValueError("times_s must hold at least one time, none negative and not all zero")
    return total_s


def token_throughput(tokens: Sequence[int], num_parameters: int, times_s: Sequence[float]) -> float:
    """TT: sum_i(tokens_i / parameters) / sum_i time_i, in tokens per parameter per s."""
    return _rate_per_parameter(tokens, num_parameters, times_s)


def sample_throughput(samples: Sequence[int], num_parameters: int, times_s: Sequence[float]) -> float:
    """ST: sum_i(samples_i / parameters) / sum_i time_i, in samples per parameter per s."""
    return _rate_per_parameter(samples, num_parameters, times_s)


def _rate_per_parameter(counts: Sequence[int], num_parameters: int, times_s: Sequence[float]) -> float:
    if num_parameters <= 0:
        raise ValueError(f"num_parameters is {num_parameters}; it must be above zero")
    if len(counts) != len(times_s):
        raise ValueError(f"{len(counts)} counts but {len(times_s)} times")
    return math.fsum(count / num_parameters for count in counts) / _sum_s(times_s)


def inference_throughput(generated_tokens: Sequence[int], times_s: Sequence[float]) -> float:
    """IT: sum_i generated tokens_i / sum_i time_i, in tokens per s."""
    return _rate_per_parameter(generated_tokens, 1, times_s)


def model_compression_rate(
    size_original: float, size_compressed: float, performance_original: float, performance_compressed: float
) -> float:
    """MCR (Eq 9): size_original / size_compressed * performance_compressed / performance_original.

    With bytes of weights on disk it is `mcr_measured`; with 16 and the nominal bit width it is `mcr_nominal`, which is
    what the published Table 9 holds.
    """
    for name, value in (("size_original", size_original), ("size_compressed", size_compressed)):
        if value <= 0:
            raise ValueError(f"{name} is {value}; it must be above zero")
    if performance_original <= 0 or performance_compressed < 0:
        raise ValueError("the original performance must be above zero and the compressed one not below it")
    return size_original / size_compressed * performance_compressed / performance_original


def model_flops_utilization(flops: float, duration_s: float, device_name: str, dtype: str) -> float | None:
    """MFU: model FLOPs per s over the device's dense peak in `dtype`, a fraction; None for an unknown device or type.

    `flops` are those the model needs, recomputation left out (Chowdhery et al. 2022, appendix B). For several devices
    of one kind divide `flops` by their number.
    """
    return _share_of_peak(flops, duration_s, peak_flops_per_s(device_name, dtype))


def model_bandwidth_utilization(bytes_moved: float, duration_s: float, device_name: str) -> float | None:
    """MBU: bytes the model must move per s over the device's peak memory bandwidth, a fraction; None if unknown.

    For decoding the bytes of a step are the weights, once, and the cache of keys and values.
    """
    return _share_of_peak(bytes_moved, duration_s, peak_bandwidth_b_per_s(device_name))


def _share_of_peak(amount: float, duration_s: float, peak_per_s: float | None) -> float | None:
    if duration_s <= 0 or amount < 0:
        raise ValueError(f"an amount of {amount} in {duration_s} s is no rate")
    return None if peak_per_s is None else amount / duration_s / peak_per_s


def energy_per_token_j(energy_j: float | None, tokens: int) -> float | None:
    """J per token; None where the energy was not measured."""
    if tokens <= 0:
        raise ValueError(f"tokens is {tokens}; energy per token needs at least one")
    return None if energy_j is None else energy_j / tokens


def energy_above_idle_j(energy_j: float | None, duration_s: float, idle_power_w: float | None) -> float | None:
    """What of the energy the workload added to an idle device's, J; None where either was not measured.

    Reported beside `energy_j`, never in its place: the idle share is consumed all the same.
    """
    return None if energy_j is None or idle_power_w is None else energy_j - duration_s * idle_power_w


def latency_percentiles_ms(latencies_ms: ArrayLike) -> dict[str, float]:
    """p50, p95 and p99 of latencies of shape (n,), n >= 1, interpolated linearly between order statistics."""
    p50, p95, p99 = np.percentile(np.asarray(latencies_ms, dtype=float), [50, 95, 99])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}


def mean_ci95(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of the two-sided 95 % interval by Student's t over repeats.

    One value alone has a mean and no interval: low and high are None. ValueError for no value.
    """
    # Imported here, and not scipy.stats, which takes a second to load.
    from scipy.special import stdtrit

    if len(values) == 0:
        raise ValueError("a mean needs at least one value")
    sample = np.asarray(values, dtype=float)
    mean = float(sample.mean())
    if sample.size == 1:
        return mean, None, None
    half = float(stdtrit(sample.size - 1, 0.975) * sample.std(ddof=1) / math.sqrt(sample.size))
    return mean, mean - half, mean + half
