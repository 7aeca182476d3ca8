"""The kernels of a profiled step by what they belong to: attention, products, the cache, sampling, inputs."""

import re
from collections import Counter, defaultdict
from typing import Any

import torch
from torch.profiler import profile

# Kernels that no operation of PyTorch has launched, those of graphs and of Triton, are known by their names.
BY_NAME = (
    ("attention", r"fmha|flash|attention|softmax"),
    ("products", r"gemm|gemv|nvjet|cutlass|xmma|splitk|marlin|quant|dequant|kgemm|matmul"),
    ("cache", r"index_copy|index_select|indexSelect|scatter|gather|index"),
    ("sampling", r"argmax|ArgMax"),
    ("inputs", r"memcpy|memset|fill"),
)
# An operation belongs to the innermost of these that encloses it.
BY_RANGE = {
    "aten::scaled_dot_product_attention": "attention",
    "aten::_flash_attention_forward": "attention",
    "aten::linear": "products",
    "part:packed layer": "products",
    "part:cache": "cache",
    "part:heads repeated": "heads repeated",
    "part:sampling": "sampling",
    "part:inputs": "inputs",
}
Row = dict[str, Any]


def account(profiler: profile, steps: int) -> Row:
    """Milliseconds of kernels a step by what they belong to, and the longest kernels; of a CPU, of operations."""
    on_gpu = torch.cuda.is_available()
    by_part: Counter[str] = Counter()
    launched: Counter[str] = Counter()
    by_kernel: dict[str, list[float]] = defaultdict(list)
    events = profiler.events()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            kernels = [(kernel.name, kernel.duration) for kernel in event.kernels]
            if not on_gpu:
                kernels = [(event.name, event.self_cpu_time_total)]
            for name, duration in kernels:
                launched[name] += duration
                by_part[_part(event) or "other"] += duration
        elif not event.name.startswith("part:") and not getattr(event, "is_user_annotation", False):
            by_kernel[event.name].append(event.time_range.elapsed_us())
    for name, durations in by_kernel.items():
        rest = sum(durations) - launched[name]
        if rest > 1:
            by_part[_named(name) or "other"] += rest
    total = sum(by_part.values())
    longest = sorted(by_kernel.items(), key=lambda item: -sum(item[1]))[:12]
    return {
        "steps": steps,
        "kernels_ms": total / steps / 1e3,
        "launches": sum(len(durations) for durations in by_kernel.values()) / steps,
        "parts_ms": {part: spent / steps / 1e3 for part, spent in by_part.most_common()},
        "longest": [
            {"name": name[:120], "ms": sum(durations) / steps / 1e3, "calls": len(durations) / steps}
            for name, durations in longest
        ],
    }


def _part(event: Any) -> str | None:
    while event is not None:
        if event.name in BY_RANGE:
            return BY_RANGE[event.name]
        event = event.cpu_parent
    return None


def _named(kernel: str) -> str | None:
    return next((part for part, pattern in BY_NAME if re.search(pattern, kernel, re.IGNORECASE)), None)
