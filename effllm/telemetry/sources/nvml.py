"""NVML: power, energy, memory, utilisation, clocks, temperature and throttling of one NVIDIA device.

Upstream: NVIDIA Management Library API reference (nvmlDeviceQueries, nvmlFieldValueEnums). The package
`nvidia-ml-py` provides the module `pynvml`. Nothing here writes a setting.
"""

import math
import os
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from effllm.telemetry.sources.base import EnergyMeter, Quantity, Source, SourceLost, SourceUnavailable
from effllm.telemetry.sources.host import descendants

# On these the total-energy counter covers processor, GPU and memory of the module together.
_SUPERCHIP = re.compile(r"\bG[BH]\d{3}\b")

_QUANTITIES = {
    "energy_j": Quantity("J", "counter", "total energy since the driver was loaded"),
    "power_instant_w": Quantity("W", "gauge", "power of the GPU, latest sensor value"),
    "power_average_w": Quantity("W", "gauge", "power of the GPU, averaged over 1 s by the sensor"),
    "module_power_instant_w": Quantity("W", "gauge", "power of the module, latest sensor value"),
    "module_power_average_w": Quantity("W", "gauge", "power of the module, averaged over 1 s by the sensor"),
    "memory_power_average_w": Quantity("W", "gauge", "power of the device memory, averaged by the sensor"),
    "memory_used_b": Quantity("B", "gauge", "device memory allocated, by whatever process"),
    "memory_process_b": Quantity("B", "gauge", "device memory of the processes of the workload's tree"),
    "foreign_processes": Quantity("1", "gauge", "compute processes on the device outside the workload's tree"),
    "foreign_memory_b": Quantity("B", "gauge", "device memory of the processes outside the workload's tree"),
    "foreign_utilization": Quantity("1", "gauge", "share of the multiprocessors' time of those processes"),
    "utilization_gpu": Quantity("1", "gauge", "share of the last sensor period in which some kernel ran"),
    "utilization_memory": Quantity("1", "gauge", "share of the last sensor period with device memory traffic"),
    "sm_clock_mhz": Quantity("MHz", "gauge", "clock of the multiprocessors"),
    "memory_clock_mhz": Quantity("MHz", "gauge", "clock of the device memory"),
    "temperature_c": Quantity("degC", "gauge", "temperature of the GPU die"),
    "throttle_reasons": Quantity("1", "flags", "reasons why clocks are below their maximum"),
}

THROTTLE_BITS = {
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""NVML's nvmlClocksEventReason* bits, less `gpu_idle` (0x1), which is no throttling."""

_MIG_REASON = "NVML measures the whole GPU, of which this job holds one MIG slice"
_TREE_REFRESH_NS = 1_000_000_000
# Asking an H200 for its energy counter keeps a core busy for 4 ms, all other questions together for 0.1 ms. Between the
# edges of a window the counter only has to show whether it was reset.
_COUNTER_PERIOD_NS = 1_000_000_000
# How old the sensors' values may be, as observed on an H200; the averaged power looks back a second by definition.
_COUNTER_UPDATE_S = 0.1
_POWER_UPDATE_S = {"instant": 0.1, "average": 1.0}

_Answer = TypeVar("_Answer")


def load_nvml() -> Any:
    """The initialised pynvml module; SourceUnavailable with NVML's own words where there is no driver."""
    try:
        import pynvml
    except ImportError as error:
        raise SourceUnavailable("the package nvidia-ml-py (module pynvml) is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SourceUnavailable(f"NVML does not start: {error}") from error
    return pynvml


class NvmlSource(Source):
    """One device, by UUID. Every quantity is tried once on opening; those refused are in `missing` with NVML's answer.

    `nvml` may be given in place of the pynvml module, already initialised. `root_pid` is the workload's
    process (default: this one).
    """

    name = "nvml"
    min_period_s = 0.0
    in_workload = False

    def __init__(
        self,
        uuid: str | None = None,
        root_pid: int | None = None,
        nvml: Any = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ):
        if uuid is None:
            raise SourceUnavailable("no CUDA device was asked for, or none is visible")
        self._nvml = load_nvml() if nvml is None else nvml
        self._root_pid = os.getpid() if root_pid is None else root_pid
        self._monotonic_ns = monotonic_ns
        self._counter_due_ns = self._tree_is_fresh_until_ns = 0
        self._utilization_seen_us = 0
        self._tree: set[int] = set()
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
            self._mig = uuid.startswith("MIG-")
            self.facts = self._read_facts(uuid)
        except self._nvml.NVMLError as error:
            raise SourceUnavailable(f"NVML finds no device {uuid}: {error}") from error
        self.quantities: dict[str, Quantity] = {}
        self.missing: dict[str, str] = {}
        self._readers: dict[str, Callable[[], float]] = {}
        self._fields: dict[str, tuple[int, int]] = {}
        self._probe()
        self.meter = self._meter()

    def _read_facts(self, uuid: str) -> dict[str, Any]:
        name = self._nvml.nvmlDeviceGetName(self._handle)
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return {
            "uuid": uuid,
            "name": name.decode() if isinstance(name, bytes) else name,
            "memory_total_b": int(memory.total),
        }

    def _probe(self) -> None:
        """Keep the quantities that this device answers, and NVML's answer for those it refuses."""
        nvml, handle = self._nvml, self._handle
        readers = {
            "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
            "memory_used_b": self._memory_used_b,
            "utilization_gpu": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "utilization_memory": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).memory / 100,
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        }
        fields = {
            "power_instant_w": (nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_POWER_SCOPE_GPU),
            "power_average_w": (nvml.NVML_FI_DEV_POWER_AVERAGE, nvml.NVML_POWER_SCOPE_GPU),
            "module_power_instant_w": (nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_POWER_SCOPE_MODULE),
            "module_power_average_w": (nvml.NVML_FI_DEV_POWER_AVERAGE, nvml.NVML_POWER_SCOPE_MODULE),
            "memory_power_average_w": (nvml.NVML_FI_DEV_POWER_AVERAGE, nvml.NVML_POWER_SCOPE_MEMORY),
        }
        for quantity, reader in readers.items():
            if self._mig and quantity != "memory_used_b":
                self.missing[quantity] = _MIG_REASON
                continue
            try:
                reader()
            except nvml.NVMLError as error:
                self.missing[quantity] = f"NVML answers: {error}"
            else:
                self._readers[quantity] = reader
        for quantity, field in fields.items():
            if self._mig:
                self.missing[quantity] = _MIG_REASON
                continue
            refusal = self._field_refusal(field)
            if refusal is None:
                self._fields[quantity] = field
            else:
                self.missing[quantity] = refusal
        self._probe_legacy_power()
        self._probe_processes()
        offered = {*self._readers, *self._fields, *self._process_quantities}
        self.quantities.update({name: q for name, q in _QUANTITIES.items() if name in offered})

    def _field_refusal(self, field: tuple[int, int]) -> str | None:
        try:
            answer = self._nvml.nvmlDeviceGetFieldValues(self._handle, [field])[0]
        except self._nvml.NVMLError as error:
            return f"NVML answers: {error}"
        if answer.nvmlReturn != self._nvml.NVML_SUCCESS:
            return f"NVML answers: {self._nvml.NVMLError(answer.nvmlReturn)}"
        return None

    def _probe_legacy_power(self) -> None:
        """Devices and drivers without the power fields may still answer the older call, a GPU-wide average."""
        if self._mig or self._fields:
            return
        try:
            self._nvml.nvmlDeviceGetPowerUsage(self._handle)
        except self._nvml.NVMLError:
            return
        self._readers["power_average_w"] = lambda: self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3
        self.missing.pop("power_average_w")

    def _probe_processes(self) -> None:
        self._process_quantities: set[str] = set()
        names = ("memory_process_b", "foreign_processes", "foreign_memory_b")
        try:
            self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            self.missing.update(dict.fromkeys(names, f"NVML answers: {error}"))
        else:
            self._process_quantities.update(names)
            self._probe_process_utilization()

    def _probe_process_utilization(self) -> None:
        nvml = self._nvml
        if self._mig:
            self.missing["foreign_utilization"] = _MIG_REASON
            return
        try:
            nvml.nvmlDeviceGetProcessUtilization(self._handle, 0)
        except nvml.NVMLError_NotFound:
            # No process has run anything yet.
            pass
        except nvml.NVMLError as error:
            self.missing["foreign_utilization"] = f"NVML answers: {error}"
            return
        self._process_quantities.add("foreign_utilization")

    def _meter(self) -> EnergyMeter | None:
        counters = ("energy_j",) if "energy_j" in self._readers else ()
        superchip = _SUPERCHIP.search(self.facts["name"]) is not None
        # Where only the module's power is answered, the module is the only scope there is.
        gpu_power: str | None = next((q for q in ("power_instant_w", "power_average_w") if q in self.quantities), None)
        module_power: str | None = next(
            (q for q in ("module_power_instant_w", "module_power_average_w") if q in self.quantities), None
        )
        counter_scope = "module" if superchip or (module_power and not gpu_power) else "gpu"
        power, power_scope = gpu_power, "gpu"
        if power is None or (counter_scope == "module" and module_power):
            power, power_scope = module_power, "module"
        if not counters and power is None:
            return None
        return EnergyMeter(
            counters=counters,
            counter_scope=counter_scope if counters else None,
            counter_update_s=_COUNTER_UPDATE_S,
            powers=(power,) if power else (),
            power_scope=power_scope if power else None,
            power_update_s=_POWER_UPDATE_S["instant" if power and "instant" in power else "average"],
        )

    def _memory_used_b(self) -> float:
        try:
            # The second version leaves out what the driver reserves for itself, as nvidia-smi does.
            return self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=self._nvml.nvmlMemory_v2).used
        except self._nvml.NVMLError_FunctionNotFound:
            return self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used

    def read(self) -> dict[str, float]:
        """Every offered quantity, the energy counter once a second only; SourceLost once the device is gone."""
        return self._read(with_counter=self._monotonic_ns() >= self._counter_due_ns)

    def read_at_edge(self) -> dict[str, float]:
        """Every offered quantity, the energy counter included."""
        return self._read(with_counter=True)

    def _read(self, with_counter: bool) -> dict[str, float]:
        nvml, values = self._nvml, {}
        try:
            for quantity, reader in self._readers.items():
                if quantity != "energy_j" or with_counter:
                    values[quantity] = float(self._ask(reader, math.nan))
            values.update(self._ask(self._read_fields, dict.fromkeys(self._fields, math.nan)))
            values.update(self._ask(self._read_processes, dict.fromkeys(self._process_quantities, math.nan)))
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_Uninitialized, nvml.NVMLError_ResetRequired) as error:
            raise SourceLost(f"NVML answers: {error}") from error
        if with_counter:
            self._counter_due_ns = self._monotonic_ns() + _COUNTER_PERIOD_NS
        return values

    def _ask(self, question: Callable[[], _Answer], otherwise: _Answer) -> _Answer:
        """The answer, or `otherwise` where the device refuses it this once; errors that mean its end are raised."""
        nvml = self._nvml
        try:
            return question()
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_Uninitialized, nvml.NVMLError_ResetRequired):
            raise
        except nvml.NVMLError:
            return otherwise

    def _read_fields(self) -> dict[str, float]:
        if not self._fields:
            return {}
        answers = self._nvml.nvmlDeviceGetFieldValues(self._handle, list(self._fields.values()))
        return {
            quantity: answer.value.uiVal / 1e3 if answer.nvmlReturn == self._nvml.NVML_SUCCESS else math.nan
            for quantity, answer in zip(self._fields, answers, strict=True)
        }

    def _read_processes(self) -> dict[str, float]:
        """Device memory of the workload's processes, and how many others there are.

        In a PID namespace of its own the workload sees its processes under other numbers than NVML does. Then
        none matches, and neither number is given: a guess would call the workload itself a foreigner.
        """
        if not self._process_quantities:
            return {}
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        now_ns = self._monotonic_ns()
        if now_ns >= self._tree_is_fresh_until_ns:
            self._tree = set(descendants(self._root_pid))
            self._tree_is_fresh_until_ns = now_ns + _TREE_REFRESH_NS
        own = [process.usedGpuMemory for process in processes if process.pid in self._tree]
        if processes and not own:
            return dict.fromkeys(self._process_quantities, math.nan)
        foreign = [process.usedGpuMemory for process in processes if process.pid not in self._tree]
        values = {
            "foreign_processes": float(len(foreign)),
            "foreign_memory_b": math.nan if None in foreign else float(sum(foreign)),
            "memory_process_b": math.nan if None in own else float(sum(own)),
        }
        if "foreign_utilization" in self._process_quantities:
            values["foreign_utilization"] = self._foreign_utilization() if foreign else 0.0
        return values

    def _foreign_utilization(self) -> float:
        """Latest share of time of each process that is not ours, added up; NVML keeps the samples of some seconds."""
        nvml = self._nvml
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(self._handle, self._utilization_seen_us)
        except nvml.NVMLError_NotFound:
            return 0.0
        self._utilization_seen_us = max((sample.timeStamp for sample in samples), default=self._utilization_seen_us)
        latest = {sample.pid: sample.smUtil / 100 for sample in samples if sample.pid not in self._tree}
        return float(sum(latest.values()))

    def close(self) -> None:
        """NVML counts its users; this one is done."""
        self._nvml.nvmlShutdown()
