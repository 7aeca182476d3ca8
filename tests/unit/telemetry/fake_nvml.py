"""A pynvml module whose devices follow scripted traces, for replaying what real sensors do.

Its sensors behave like real ones: they latch a new value every `sensor_period_s`, the average power looks back
`averaging_s`, the energy counter counts whole mJ, and any of them can be missing, reset or lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np


class FakeClock:
    """Monotonic and wall time that move only when told to; the wall clock can be stepped on its own."""

    def __init__(self):
        self.now_ns = 1_000_000_000_000
        self.wall_offset_ns = 1_700_000_000_000_000_000

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns + self.wall_offset_ns

    @property
    def elapsed_s(self) -> float:
        return (self.now_ns - 1_000_000_000_000) / 1e9


class Trace:
    """Power over time as straight lines between (time in s, W) points; its integral is known exactly."""

    def __init__(self, points: Sequence[tuple[float, float]]):
        self.times, self.powers = np.array(points, dtype=float).T
        steps = np.diff(self.times) * (self.powers[1:] + self.powers[:-1]) / 2
        self._energy = np.concatenate([[0.0], np.cumsum(steps)])

    def power_w(self, t: float) -> float:
        return float(np.interp(t, self.times, self.powers))

    def energy_j(self, start: float, end: float) -> float:
        return self._energy_until(end) - self._energy_until(start)

    def _energy_until(self, t: float) -> float:
        if t <= self.times[0]:
            return (t - self.times[0]) * self.powers[0]
        i = min(int(np.searchsorted(self.times, t, side="right")) - 1, len(self.times) - 1)
        return self._energy[i] + (t - self.times[i]) * (self.powers[i] + self.power_w(t)) / 2


class NVMLError(Exception):
    def __init__(self, value: int = 999):
        super().__init__({3: "Not Supported", 15: "GPU is lost", 6: "Not Found"}.get(value, "Unknown Error"))
        self.value = value


class NVMLError_NotSupported(NVMLError):
    def __init__(self):
        super().__init__(3)


class NVMLError_GpuIsLost(NVMLError):
    def __init__(self):
        super().__init__(15)


class NVMLError_Uninitialized(NVMLError):
    pass


class NVMLError_ResetRequired(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


class NVMLError_NotFound(NVMLError):
    def __init__(self):
        super().__init__(6)


@dataclass
class FakeGpu:
    """One scripted device. `missing` names the NVML calls and power scopes it refuses."""

    trace: Trace
    uuid: str = "GPU-aaaa0000-0000-0000-0000-000000000001"
    name: str = "NVIDIA H200"
    sensor_period_s: float = 0.1
    averaging_s: float = 1.0
    missing: frozenset[str] = frozenset({"scope1", "scope2"})
    module_trace: Trace | None = None
    counter_trace: Trace | None = None
    counter_reset_at_s: float | None = None
    lost_at_s: float | None = None
    failing_s: tuple[float, float] | None = None
    throttled: Sequence[tuple[float, float, int]] = ()
    memory_b: Callable[[float], float] = lambda t: 10e9
    utilization: Callable[[float], float] = lambda t: 50
    processes: Sequence[tuple[int, int | None]] = ()
    process_load: dict[int, int] = field(default_factory=dict)
    mig: bool = False
    answers: dict[str, int] = field(default_factory=dict)


class FakeNvml:
    """Stands for the initialised pynvml module. Handles are the FakeGpu objects themselves."""

    NVML_SUCCESS = 0
    NVML_FI_DEV_POWER_AVERAGE, NVML_FI_DEV_POWER_INSTANT = 185, 186
    NVML_POWER_SCOPE_GPU, NVML_POWER_SCOPE_MODULE, NVML_POWER_SCOPE_MEMORY = 0, 1, 2
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlMemory_v2 = 2
    NVMLError = NVMLError
    NVMLError_GpuIsLost = NVMLError_GpuIsLost
    NVMLError_Uninitialized = NVMLError_Uninitialized
    NVMLError_ResetRequired = NVMLError_ResetRequired
    NVMLError_FunctionNotFound = NVMLError_FunctionNotFound
    NVMLError_NotFound = NVMLError_NotFound

    def __init__(self, clock: FakeClock, gpus: Sequence[FakeGpu]):
        self._clock, self._gpus = clock, list(gpus)
        self.shutdowns = 0

    def _check(self, gpu: FakeGpu, call: str) -> None:
        now = self._clock.elapsed_s
        if gpu.lost_at_s is not None and now >= gpu.lost_at_s:
            raise NVMLError_GpuIsLost()
        if call in gpu.missing or (gpu.failing_s and gpu.failing_s[0] <= now < gpu.failing_s[1]):
            raise NVMLError_NotSupported()

    def _latched_s(self, gpu: FakeGpu) -> float:
        # A whisker is added so that a reading on the very edge of a sensor period is not lost to rounding.
        return np.floor(self._clock.elapsed_s / gpu.sensor_period_s + 1e-9) * gpu.sensor_period_s

    def nvmlShutdown(self):
        self.shutdowns += 1

    def nvmlDeviceGetCount(self):
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self._gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for gpu in self._gpus:
            if gpu.uuid.encode() == uuid:
                return gpu
        raise NVMLError(6)

    def nvmlDeviceGetUUID(self, gpu):
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu):
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu, version=None):
        self._check(gpu, "nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(total=143771 * 2**20, used=gpu.memory_b(self._clock.elapsed_s))

    def nvmlDeviceGetProcessUtilization(self, gpu, since_us):
        self._check(gpu, "nvmlDeviceGetProcessUtilization")
        now_us = int(self._clock.elapsed_s * 1e6) + 1
        samples = [SimpleNamespace(pid=pid, smUtil=used, timeStamp=now_us) for pid, used in gpu.process_load.items()]
        if not samples or now_us <= since_us:
            raise NVMLError_NotFound()
        return samples

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        self._check(gpu, "nvmlDeviceGetTotalEnergyConsumption")
        now, trace = self._latched_s(gpu), gpu.counter_trace or gpu.trace
        if gpu.counter_reset_at_s is not None and now >= gpu.counter_reset_at_s:
            return int(trace.energy_j(gpu.counter_reset_at_s, now) * 1e3)
        return int((5_000 + trace.energy_j(0, now)) * 1e3)

    def nvmlDeviceGetPowerUsage(self, gpu):
        self._check(gpu, "nvmlDeviceGetPowerUsage")
        return int(self._average_w(gpu, gpu.trace) * 1e3)

    def _average_w(self, gpu, trace):
        now = self._latched_s(gpu)
        return trace.energy_j(now - gpu.averaging_s, now) / gpu.averaging_s

    def nvmlDeviceGetFieldValues(self, gpu, fields):
        self._check(gpu, "nvmlDeviceGetFieldValues")
        return [self._field(gpu, number, scope) for number, scope in fields]

    def _field(self, gpu, number, scope):
        if f"scope{scope}" in gpu.missing or f"field{number}" in gpu.missing:
            return SimpleNamespace(nvmlReturn=3, value=None)
        trace = gpu.module_trace if scope == 1 and gpu.module_trace else gpu.trace
        watts = trace.power_w(self._latched_s(gpu)) if number == 186 else self._average_w(gpu, trace)
        return SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=int(watts * 1e3)))

    def nvmlDeviceGetUtilizationRates(self, gpu):
        self._check(gpu, "nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=gpu.utilization(self._latched_s(gpu)), memory=20)

    def nvmlDeviceGetClockInfo(self, gpu, which):
        self._check(gpu, "nvmlDeviceGetClockInfo")
        return 1980 if which == self.NVML_CLOCK_SM else 3201

    nvmlDeviceGetMaxClockInfo = nvmlDeviceGetClockInfo

    def nvmlDeviceGetTemperature(self, gpu, which):
        self._check(gpu, "nvmlDeviceGetTemperature")
        return 55

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu):
        self._check(gpu, "nvmlDeviceGetCurrentClocksEventReasons")
        now = self._clock.elapsed_s
        return sum(bits for start, end, bits in gpu.throttled if start <= now < end)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        self._check(gpu, "nvmlDeviceGetComputeRunningProcesses")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in gpu.processes]

    def nvmlSystemGetDriverVersion(self):
        return "580.00"

    def nvmlSystemGetCudaDriverVersion(self):
        return 13000

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu):
        self._check(gpu, "nvmlDeviceGetEnforcedPowerLimit")
        return 700_000

    nvmlDeviceGetPowerManagementDefaultLimit = nvmlDeviceGetEnforcedPowerLimit

    def nvmlDeviceGetPersistenceMode(self, gpu):
        return 1

    def nvmlDeviceGetMigMode(self, gpu):
        return [int(gpu.mig), int(gpu.mig)]

    def nvmlDeviceGetEccMode(self, gpu):
        return [1, 1]
