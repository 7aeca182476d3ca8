"""Peak arithmetic, memory bandwidth and memory of devices, by the exact name that NVML and torch report.

Source: NVIDIA's data sheets of each product; dense figures (without structured sparsity), at the boost clock. A name
that is not here has no peak: a similar name may be a card of half the speed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense peak with 16-bit operands (bfloat16 and float16 alike) in FLOP/s; bandwidth in B/s and size in B of memory.

    A driver keeps a little of the memory for itself: what is free is less than `memory_b`.
    """

    half_flops_per_s: float
    bandwidth_b_per_s: float
    memory_b: float


PEAKS = {
    "NVIDIA GH200 120GB": Peak(989e12, 4.0e12, 96e9),
    "NVIDIA GH200 480GB": Peak(989e12, 4.0e12, 96e9),
    "NVIDIA GH200 144G HBM3e": Peak(989e12, 4.9e12, 144e9),
    "NVIDIA H200": Peak(989e12, 4.8e12, 141e9),
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12, 80e9),
    "NVIDIA H100 PCIe": Peak(756e12, 2.0e12, 80e9),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1.555e12, 40e9),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12, 80e9),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 1.555e12, 40e9),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 1.935e12, 80e9),
    "NVIDIA L40S": Peak(362e12, 0.864e12, 48e9),
    "NVIDIA L4": Peak(121e12, 0.3e12, 24e9),
}

_HALF_DTYPES = ("bfloat16", "float16")


def peak_flops_per_s(device_name: str, dtype: str) -> float | None:
    """Dense peak in FLOP/s, or None for an unknown device or a type without a figure here.

    `dtype` is the type of the operands of the matrix products, which for weight-only quantisation is the 16-bit type
    the weights are expanded to.
    """
    peak = PEAKS.get(device_name)
    return peak.half_flops_per_s if peak is not None and dtype in _HALF_DTYPES else None


def peak_bandwidth_b_per_s(device_name: str) -> float | None:
    """Peak bandwidth of the device's memory in B/s, or None for an unknown device."""
    peak = PEAKS.get(device_name)
    return None if peak is None else peak.bandwidth_b_per_s


def memory_b(device_name: str) -> float | None:
    """Size of the device's own memory in B, or None for an unknown device."""
    peak = PEAKS.get(device_name)
    return None if peak is None else peak.memory_b
