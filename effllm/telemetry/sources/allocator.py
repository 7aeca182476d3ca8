"""torch's caching allocator on a CUDA device: bytes the tensors hold, bytes it reserved, its peak and its retries.

Upstream: torch.cuda.memory_stats. The statistics live in the workload's process, so this source is read
there: at the edges of windows and by a light thread (see `effllm.telemetry.session`), never by the sampler
process.
"""

from typing import Any

from effllm.telemetry.sources.base import Quantity, Source, SourceUnavailable


class TorchAllocatorSource(Source):
    """Allocator statistics of one device. `allocated_peak_b` is the peak since the last edge of a window, of
    whatever name: while telemetry runs, the allocator's peak statistics belong to it.

    `torch` may be given in place of the installed package; it needs `cuda.memory_stats(device)` and
    `cuda.reset_peak_memory_stats(device)`.
    """

    name = "torch_allocator"
    min_period_s = 0.0
    in_workload = True
    meter = None

    def __init__(self, device: str = "cuda", torch: Any = None):
        if not device.startswith("cuda"):
            raise SourceUnavailable("torch's caching allocator exists on CUDA devices only")
        if torch is None:
            try:
                import torch
            except ImportError as error:
                raise SourceUnavailable("torch is not installed") from error
        if not torch.cuda.is_available():
            raise SourceUnavailable("torch sees no CUDA device")
        self._cuda, self._device = torch.cuda, device
        self.quantities = {
            "allocated_b": Quantity("B", "gauge", "bytes of live tensors"),
            "reserved_b": Quantity("B", "gauge", "bytes the allocator took from the driver"),
            "allocated_peak_b": Quantity("B", "gauge", "most bytes of live tensors since the previous window edge"),
            "retries": Quantity("1", "counter", "allocations that succeeded only after the cache was emptied"),
        }
        self.missing: dict[str, str] = {}
        self.facts: dict[str, str] = {"device": device}

    def read(self) -> dict[str, float]:
        """Current statistics in bytes (see Source.read)."""
        stats = self._cuda.memory_stats(self._device)
        # Before the first allocation torch returns an empty dictionary, which truly means zero bytes.
        return {
            "allocated_b": float(stats.get("allocated_bytes.all.current", 0)),
            "reserved_b": float(stats.get("reserved_bytes.all.current", 0)),
            "allocated_peak_b": float(stats.get("allocated_bytes.all.peak", 0)),
            "retries": float(stats.get("num_alloc_retries", 0)),
        }

    def read_at_edge(self) -> dict[str, float]:
        """As `read`, then start a new peak, so that each of several nested windows can have its own exact one."""
        values = self.read()
        self._cuda.reset_peak_memory_stats(self._device)
        return values
