"""Figures of all windows of one name together: what was measured, and for everything else the reason why not."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effllm.results.telemetry import DeviceShare, TelemetrySummary
from effllm.telemetry.integrate import CounterReset
from effllm.telemetry.readings import NotMeasured, Readings
from effllm.telemetry.sources.base import EnergyMeter, Source
from effllm.telemetry.sources.nvml import THROTTLE_BITS
from effllm.telemetry.sources.several import of_device, of_one
from effllm.telemetry.spool import TICK
from effllm.telemetry.windows import Segment, WindowRecord

GB = 1e9
"""Bytes in a GB, decimal as everywhere in this project."""

PROCESSOR_METERS = ("rapl", "cray_pm", "hwmon")
"""Sources of processor energy, best first: a counter of the package, a counter of the node, a power meter."""

# Children are accounted in ticks of 10 ms when they end, and reading the clocks takes a fraction of a ms itself.
_SHORTEST_CPU_S = 0.05
# The machine's CPU time is counted by ticks of 10 ms, and which of them a process meets is chance.
_SHORTEST_LOAD_S = 0.2
_TICKS_MISS = 0.2
# Late by half an update at each edge, a sensor then misplaces at most 5 % of the window.
_UPDATES_PER_SEGMENT = 10
# NVML's utilisation looks back between 1/6 s and 1 s, depending on the product.
_UTILIZATION_S = 1.0


class Summary:
    """Computes the figures of one set of windows. `sources` holds every source asked for, null ones included.

    Of several `devices` a figure is that of all together, and each one's own are beside it.
    """

    def __init__(
        self,
        windows: Sequence[WindowRecord],
        sources: Mapping[str, Source],
        readings: Readings,
        device: str,
        devices: int = 1,
    ):
        self._devices = devices
        self._windows, self._sources, self._readings = windows, sources, readings
        self._cuda = device.startswith("cuda")
        self._segments: list[Segment] = [segment for window in windows for segment in window.segments]
        self._duration_s = math.fsum(segment.duration_s for segment in self._segments)

    def figures(self) -> TelemetrySummary:
        """All figures, with `reasons` for those that are None. Units are in the names; GB = 1e9 bytes."""
        figures: dict[str, Callable[[], Any]] = {
            "samples": self._samples,
            "memory_device_avg_gb": lambda: self._average("nvml", "memory_used_b") / GB,
            "memory_device_peak_gb": lambda: self._peak("nvml", "memory_used_b") / GB,
            "memory_process_avg_gb": lambda: self._average("nvml", "memory_process_b") / GB,
            "memory_process_peak_gb": lambda: self._peak("nvml", "memory_process_b") / GB,
            "memory_host_avg_gb": lambda: self._average("host", "rss_b") / GB,
            "memory_host_peak_gb": lambda: self._peak("host", "rss_b") / GB,
            "memory_total_gb": lambda: self._fact("nvml", "memory_total_b") / GB,
            "memory_host_total_gb": lambda: self._fact("host", "memory_total_b") / GB,
            "memory_avg_fraction": self._memory_fraction,
            "allocator_allocated_avg_gb": lambda: self._average("torch_allocator", "allocated_b") / GB,
            "allocator_reserved_avg_gb": lambda: self._average("torch_allocator", "reserved_b") / GB,
            "allocator_peak_gb": lambda: self._peak("torch_allocator", "allocated_peak_b", opening=False) / GB,
            "allocator_retries": lambda: int(self._increase("torch_allocator", "retries")),
            "util_nvml": self._util_nvml,
            "util_cpu": self._util_cpu,
            "power_avg_w": lambda: self._energy(self._meter_name())[0] / self._duration_s,
            "power_peak_w": self._power_peak,
            "energy_j": lambda: self._energy(self._meter_name())[0],
            "energy_source": lambda: self._energy(self._meter_name())[1],
            "energy_scope": lambda: self._energy(self._meter_name())[2],
            "energy_cross_check_j": self._cross_check,
            "energy_disagreement": self._disagreement,
            "host_energy_j": lambda: self._energy(self._processor_meter())[0],
            "host_energy_source": lambda: self._energy(self._processor_meter())[1],
            "host_energy_scope": lambda: self._energy(self._processor_meter())[2],
            "sm_clock_avg_mhz": lambda: self._average("nvml", "sm_clock_mhz"),
            "temperature_max_c": lambda: self._peak("nvml", "temperature_c"),
            "throttle_reasons": self._throttle_reasons,
            "throttle_fractions": self._throttle_fractions,
            "foreign_processes": lambda: int(self._peak("nvml", "foreign_processes")),
            "foreign_memory_peak_gb": lambda: self._peak("nvml", "foreign_memory_b") / GB,
            "foreign_utilization_peak": lambda: self._peak("nvml", "foreign_utilization"),
            "other_cpu_fraction": self._other_cpu,
            "steal_fraction": lambda: self._of_the_cores("steal_s"),
            "idle_cpu_fraction": lambda: self._of_the_cores("idle_s"),
            "cpu_pressure_fraction": lambda: self._load("pressure_s") / self._duration_s,
            "cgroup_pressure_fraction": lambda: self._load("cgroup_pressure_s") / self._duration_s,
            "throttled_fraction": lambda: self._load("throttled_s") / self._duration_s,
            "throttled_periods": lambda: int(self._load("throttled_periods")),
        }
        values: dict[str, Any] = {"duration_s": self._duration_s, "windows": len(self._windows)}
        found, reasons = self._measured(figures)
        values |= found
        if self._devices > 1:
            values["devices"] = [self._share(place) for place in range(self._devices)]
        invalid = [window for window in self._windows if window.status != "ok"]
        values["status"] = "invalid" if invalid else "ok"
        values["reason"] = None
        if invalid:
            values["reason"] = f"window {invalid[0].index} of {len(self._windows)}: {invalid[0].reason}"
        return TelemetrySummary(**values, reasons=reasons)

    def _measured(self, figures: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
        """The figures, and why some are None."""
        values: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for key, figure in figures.items():
            try:
                if self._duration_s <= 0:
                    raise NotMeasured("the windows have no duration")
                values[key] = figure()
            except NotMeasured as error:
                values[key], reasons[key] = None, str(error)
        return values, reasons

    def _share(self, place: int) -> DeviceShare:
        """The figures of one of several devices."""

        def used(figure: Callable[..., float]) -> Callable[[], float]:
            return lambda: figure("nvml", of_device("memory_used_b", place)) / GB

        def energy_j() -> float:
            return self._energy("nvml", place)[0]

        allocated = of_device("allocated_peak_b", place)
        values, reasons = self._measured(
            {
                "memory_device_avg_gb": used(self._average),
                "memory_device_peak_gb": used(self._peak),
                "allocator_peak_gb": lambda: self._peak("torch_allocator", allocated, opening=False) / GB,
                "util_nvml": lambda: self._util_nvml(of_device("utilization_gpu", place)),
                "power_avg_w": lambda: energy_j() / self._duration_s,
                "energy_j": energy_j,
            }
        )
        return DeviceShare(**values, reasons=reasons)

    def _source(self, source: str, quantity: str) -> Source:
        """The source, when it reads the quantity; NotMeasured with its reason otherwise."""
        if source in ("nvml", "torch_allocator") and not self._cuda:
            raise NotMeasured("the device is the CPU, which has no device memory, clock or sensor of its own")
        if source not in self._sources:
            raise NotMeasured(f"source {source} was not asked for")
        found = self._sources[source]
        if quantity in found.quantities:
            return found
        reason = getattr(found, "reason", None) or found.missing.get(quantity, f"{source} has no {quantity}")
        raise NotMeasured(reason)

    def _fact(self, source: str, key: str) -> Any:
        facts = self._sources[source].facts if source in self._sources else {}
        if key not in facts:
            # A source that is there gives its facts, so the reason is the one for all its quantities.
            self._source(source, key)
        return facts[key]

    def _average(self, source: str, quantity: str) -> float:
        self._source(source, quantity)
        return self._readings.average(source, quantity, self._segments)

    def _peak(self, source: str, quantity: str, opening: bool = True) -> float:
        self._source(source, quantity)
        return float(self._readings.within(source, quantity, self._segments, opening).max())

    def _increase(self, source: str, quantity: str) -> float:
        wraps_at = self._source(source, quantity).quantities[quantity].wraps_at
        return self._readings.increase(source, quantity, wraps_at, self._segments)

    def _samples(self) -> int:
        """Times that some source was sampled inside the windows, readings at edges not counted."""
        ticks = [self._readings.series(source, TICK)[0] for source in self._sources]
        return sum(int(((times >= s.start_s) & (times <= s.end_s)).sum()) for times in ticks for s in self._segments)

    def _memory_fraction(self) -> float:
        """AMU of Eq 1: average use over the total of the memory that the device computes in."""
        if self._cuda:
            return self._average("nvml", "memory_used_b") / self._fact("nvml", "memory_total_b")
        return self._average("host", "rss_b") / self._fact("host", "memory_total_b")

    def _util_nvml(self, quantity: str = "utilization_gpu") -> float:
        self._source("nvml", quantity)
        if self._duration_s < _UTILIZATION_S * len(self._segments):
            raise NotMeasured(
                f"the windows are shorter than the {_UTILIZATION_S:g} s that NVML's utilisation looks back"
            )
        return self._average("nvml", quantity)

    def _util_cpu(self) -> float:
        self._source("host", "cpu_s")
        if self._duration_s < _SHORTEST_CPU_S * len(self._segments):
            raise NotMeasured(
                f"the windows are shorter than {_SHORTEST_CPU_S:g} s, below which CPU clocks are too coarse"
            )
        used_s = self._readings.difference("host", "cpu_s", self._segments)
        return used_s / (self._duration_s * self._fact("host", "cores_usable"))

    def _load(self, counter: str) -> float:
        """How far a counter of the machine's load rose over the windows."""
        self._source("load", counter)
        if self._duration_s < _SHORTEST_LOAD_S * len(self._segments):
            raise NotMeasured(
                f"the windows are shorter than {_SHORTEST_LOAD_S:g} s, of which the kernel's ticks tell little"
            )
        return max(0.0, self._readings.difference("load", counter, self._segments))

    def _of_the_cores(self, counter: str) -> float:
        return self._load(counter) / (self._duration_s * self._fact("load", "cores"))

    def _other_cpu(self) -> float:
        """Share of the usable cores' time that went to processes that are not this job's."""
        busy_s, own_s = self._load("busy_s"), self._load("own_s")
        # In some containers the kernel's statistics are those of an idle machine.
        if busy_s < own_s * (1 - _TICKS_MISS) - _SHORTEST_LOAD_S * len(self._segments):
            raise NotMeasured(f"the kernel counts {busy_s:.3g} s of CPU time where the job alone used {own_s:.3g} s")
        return max(0.0, busy_s - own_s) / (self._duration_s * self._fact("load", "cores"))

    def _throttle_reasons(self) -> list[str]:
        self._source("nvml", "throttle_reasons")
        seen = 0
        for value in self._readings.within("nvml", "throttle_reasons", self._segments):
            seen |= int(value)
        return [name for bit, name in THROTTLE_BITS.items() if seen & bit]

    def _throttle_fractions(self) -> dict[str, float]:
        """Share of the time that each reason was given, reasons that never were left out."""
        self._source("nvml", "throttle_reasons")
        shares = self._readings.flag_shares("nvml", "throttle_reasons", list(THROTTLE_BITS), self._segments)
        return {THROTTLE_BITS[bit]: share for bit, share in shares.items() if share > 0}

    def _meter_name(self) -> str:
        return "nvml" if self._cuda else self._processor_meter()

    def _processor_meter(self) -> str:
        for name in PROCESSOR_METERS:
            if name in self._sources and self._sources[name].meter is not None:
                return name
        why = [
            getattr(self._sources[name], "reason", f"{name} offers no energy")
            if name in self._sources
            else f"source {name} was not asked for"
            for name in PROCESSOR_METERS
        ]
        raise NotMeasured("no instrument measures the processor's energy: " + "; ".join(why))

    def _meter(self, source: str, place: int | None = None) -> EnergyMeter:
        """What a source counts as energy; of one of several devices, that at `place`."""
        if source not in self._sources:
            raise NotMeasured(f"source {source} was not asked for")
        found = self._sources[source]
        if found.meter is None:
            reason = getattr(found, "reason", None) or found.missing.get("energy_j", f"{source} offers no energy")
            raise NotMeasured(reason)
        return found.meter if place is None else of_one(found.meter, place)

    def _counted(self, source: str, place: int | None = None) -> float:
        """Energy by the counters of a source, J. NotMeasured where there is none or it did not move."""
        meter = self._meter(source, place)
        if not meter.counters:
            raise NotMeasured(f"{source} has no energy counter")
        self._require_length(meter.counter_update_s, f"the energy counter of {source}")
        total_j = math.fsum(self._increase(source, counter) for counter in meter.counters)
        if total_j <= 0:
            raise NotMeasured(f"the energy counter of {source} did not move in {self._duration_s:.3g} s")
        return total_j

    def _integrated(self, source: str, place: int | None = None) -> float:
        """Energy by the integral of power, J."""
        meter = self._meter(source, place)
        if not meter.powers:
            raise NotMeasured(f"{source} reports no power")
        self._require_length(meter.power_update_s, f"the power sensor of {source}")
        return math.fsum(self._readings.integral(source, power, self._segments) for power in meter.powers)

    def _require_length(self, update_s: float, sensor: str) -> None:
        """A sensor that is late by half an update on average tells about another stretch of time than the window.

        The lateness does not average out over repeats: each of them misses its own end and gains what was before.
        """
        shortest_s = _UPDATES_PER_SEGMENT * update_s
        mean_s = self._duration_s / len(self._segments)
        if mean_s < shortest_s:
            raise NotMeasured(
                f"windows of {mean_s:.3g} s are too short for {sensor}, which updates every {update_s:g} s: "
                f"they must last {shortest_s:g} s or more"
            )

    def _energy(self, source: str, place: int | None = None) -> tuple[float, str, str | None]:
        """(energy in J, where from, scope): the counter; the integral of power where it is absent or was reset."""
        meter = self._meter(source, place)
        if meter.counters:
            try:
                return (
                    self._counted(source, place),
                    f"{source}: counter {' + '.join(meter.counters)}",
                    meter.counter_scope,
                )
            except CounterReset as error:
                if not meter.powers:
                    raise NotMeasured(f"the energy counter of {source} was reset: {error} J") from error
        return self._integrated(source, place), f"{source}: integral of {' + '.join(meter.powers)}", meter.power_scope

    def _cross_check(self) -> float:
        """Integral of power where the energy is the counter's and both have one scope, J."""
        source = self._meter_name()
        meter = self._meter(source)
        try:
            self._counted(source)
        except CounterReset as error:
            raise NotMeasured(f"the energy counter of {source} was reset: {error} J") from error
        if meter.powers and meter.power_scope != meter.counter_scope:
            raise NotMeasured(
                f"{source} counts energy of the {meter.counter_scope} but reports power of the {meter.power_scope}"
            )
        return self._integrated(source)

    def _disagreement(self) -> float:
        """|integral of power - counter| over the counter."""
        integrated_j = self._cross_check()
        counted_j = self._counted(self._meter_name())
        return abs(integrated_j - counted_j) / counted_j

    def _power_peak(self) -> float:
        """Highest power sampled; of several meters that are summed, the sum of their peaks would be a guess."""
        source = self._meter_name()
        meter = self._meter(source)
        # What several devices drew was read together.
        joint = {power.partition("@")[0] for power in meter.powers}
        if len(joint) != 1:
            raise NotMeasured(f"{source} reports {len(meter.powers)} powers, of which no joint peak can be told")
        self._require_length(meter.power_update_s, f"the power sensor of {source}")
        return self._peak(source, joint.pop())
