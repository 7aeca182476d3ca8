"""What was measured of a workload, the device that it ran on, and what the plausibility rules say."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from effllm.results.base import Figures, Part, ResultFile

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One rule that a figure breaks. `message` is a sentence naming the figure, its value and the bound."""

    rule: str
    severity: Severity
    message: str


class DeviceShare(Figures):
    """What the instruments say of one of several devices that ran a workload together."""

    memory_device_avg_gb: float | None = Field(description="Its memory in use, average over time.")
    memory_device_peak_gb: float | None = Field(description="The highest reading of it.")
    allocator_peak_gb: float | None = Field(description="Highest allocation on it, kept by torch's allocator.")
    util_nvml: float | None = Field(description="Share of time with a kernel running on it.")
    power_avg_w: float | None = Field(description="Its energy over the duration.")
    energy_j: float | None = Field(description="Its energy.")


class TelemetrySummary(Figures):
    """Figures over all windows of one name together. Units are in the names: GB = 1e9 bytes, fractions are of 1."""

    status: Literal["ok", "invalid"] = Field(description="invalid: the measurement failed in one of the windows.")
    reason: str | None = Field(description="Why it is invalid.")
    windows: int = Field(description="Number of windows.")
    duration_s: float = Field(description="Their time together in s, pauses left out.")
    samples: int | None = Field(default=None, description="Times that some source was read within them.")
    memory_device_avg_gb: float | None = Field(default=None, description="Device memory in use, average over time.")
    memory_device_peak_gb: float | None = Field(default=None, description="The highest reading of it.")
    memory_process_avg_gb: float | None = Field(default=None, description="Device memory of this process tree.")
    memory_process_peak_gb: float | None = Field(default=None, description="The highest reading of it.")
    memory_host_avg_gb: float | None = Field(default=None, description="Resident memory of the process tree.")
    memory_host_peak_gb: float | None = Field(default=None, description="The highest reading of it.")
    memory_total_gb: float | None = Field(default=None, description="The device's memory.")
    memory_host_total_gb: float | None = Field(default=None, description="The host's, or its cgroup's limit.")
    memory_avg_fraction: float | None = Field(
        default=None, description="AMU (Eq 1): average over total of the memory that the device computes in."
    )
    allocator_allocated_avg_gb: float | None = Field(default=None, description="Tensors in torch's allocator.")
    allocator_reserved_avg_gb: float | None = Field(default=None, description="What the allocator holds.")
    allocator_peak_gb: float | None = Field(default=None, description="Highest allocation, kept by the allocator.")
    allocator_retries: int | None = Field(default=None, description="Allocations that had to free caches first.")
    util_nvml: float | None = Field(default=None, description="Share of time with a kernel running (PCU).")
    util_cpu: float | None = Field(default=None, description="CPU time of the tree over that of its usable cores.")
    power_avg_w: float | None = Field(default=None, description="AEC: energy over duration.")
    power_peak_w: float | None = Field(default=None, description="The highest power sampled.")
    energy_j: float | None = Field(default=None, description="Energy of the windows.")
    energy_source: str | None = Field(default=None, description="The counter, or the integral of which power.")
    energy_scope: str | None = Field(default=None, description="The hardware whose energy it is.")
    energy_cross_check_j: float | None = Field(default=None, description="Integral of power beside a counter.")
    energy_disagreement: float | None = Field(default=None, description="Their difference over the counter.")
    host_energy_j: float | None = Field(default=None, description="Energy of the processors.")
    host_energy_source: str | None = Field(default=None, description="As energy_source.")
    host_energy_scope: str | None = Field(default=None, description="As energy_scope.")
    sm_clock_avg_mhz: float | None = Field(default=None, description="Clock of the multiprocessors.")
    temperature_max_c: float | None = Field(default=None, description="Highest temperature of the device.")
    throttle_reasons: list[str] | None = Field(default=None, description="Why clocks were lowered, NVML's names.")
    throttle_fractions: dict[str, float] | None = Field(default=None, description="Share of time by reason.")
    foreign_processes: int | None = Field(default=None, description="Most processes of others on the device.")
    foreign_memory_peak_gb: float | None = Field(default=None, description="Their device memory.")
    foreign_utilization_peak: float | None = Field(default=None, description="Their utilisation of the device.")
    other_cpu_fraction: float | None = Field(default=None, description="CPU time of others over the cores'.")
    steal_fraction: float | None = Field(default=None, description="Time that the hypervisor gave to other guests.")
    idle_cpu_fraction: float | None = Field(default=None, description="Time that the cores had nothing to do.")
    cpu_pressure_fraction: float | None = Field(default=None, description="Time that tasks waited for a core.")
    cgroup_pressure_fraction: float | None = Field(default=None, description="The same within the cgroup.")
    throttled_fraction: float | None = Field(default=None, description="Time held back by the CPU quota.")
    throttled_periods: int | None = Field(default=None, description="Periods of the quota that were cut.")
    devices: list[DeviceShare] | None = Field(
        default=None, description="Each device's own part, where the figures above are of several; left out of one."
    )


class DeviceInfo(Part):
    """The device that something ran on. What it did not answer is null, with its answer in `reasons`."""

    device: str = Field(description="cpu, or cuda and its index.")
    kind: Literal["cpu", "cuda"] = Field(description="Processor or GPU.")
    name: str | None = Field(description="Its model.")
    memory_total_gb: float | None = Field(description="Its memory; of a processor what this process may use.")
    count: int = Field(
        default=1,
        description="CUDA: devices of this model that ran it together; memory and power limits are their sums.",
    )
    cores_total: int | None = Field(default=None, description="CPU: cores of the machine.")
    cores_usable: float | None = Field(default=None, description="CPU: by affinity and quota.")
    kernel: str | None = Field(default=None, description="CPU: release of the operating system's kernel.")
    uuid: str | None = Field(default=None, description="CUDA: as NVML spells it.")
    driver: str | None = Field(default=None, description="CUDA: version of the driver.")
    cuda_driver_version: int | None = Field(default=None, description="CUDA: 1000 * major + 10 * minor.")
    power_limit_w: float | None = Field(default=None, description="CUDA: the limit that is enforced.")
    power_limit_default_w: float | None = Field(default=None, description="CUDA: the limit as delivered.")
    sm_clock_max_mhz: int | None = Field(default=None, description="CUDA: highest clock of the multiprocessors.")
    memory_clock_max_mhz: int | None = Field(default=None, description="CUDA: highest clock of the memory.")
    persistence_mode: bool | None = Field(default=None, description="CUDA: the driver stays loaded.")
    mig: bool | None = Field(default=None, description="CUDA: the device is divided into instances.")
    ecc: bool | None = Field(default=None, description="CUDA: errors of memory are corrected.")
    processes: list[int] | None = Field(default=None, description="CUDA: pids of others on the device.")
    reasons: dict[str, str] = Field(default_factory=dict, description="CUDA: why figures are null, by key.")


class SourceRecord(Part):
    """One instrument of a session, as far as others read it."""

    available: bool = Field(description="Whether this machine has it.")
    reason: str | None = Field(description="Why not.")
    quantities: dict[str, dict[str, Any]] = Field(description="Unit, kind and meaning of what it reads.")
    missing: dict[str, str] = Field(description="Why quantities are not read.")
    facts: dict[str, Any] = Field(description="Constants, read once.")
    meter: dict[str, Any] | None = Field(description="Which quantities make up an energy, and of what hardware.")


class WindowsRecord(Part, ResultFile):
    """A session of telemetry: its instruments, what became of the sampler, and every window with its edges."""

    FILE: ClassVar[str] = "records/telemetry/windows.json"

    device: str = Field(description="cpu, or cuda and its index.")
    period_s: float = Field(description="Time between samples in s.")
    root_pid: int = Field(description="The process whose tree was measured.")
    sources: dict[str, SourceRecord] = Field(description="Instruments by name.")
    sampler: dict[str, Any] = Field(description="Failure, cost and events of the sampler's process.")
    windows: list[dict[str, Any]] = Field(description="Windows in the order in which they ended; times in ns.")

    def to_json(self) -> str:
        """The file's text; windows and their edges keep the order of their keys."""
        return json.dumps(self.model_dump(exclude_unset=True), indent=1) + "\n"
