"""Several devices of a kind as one instrument: their readings together under the usual names, and each one's own.

What is of one device is called `quantity@place`, its place among those that were asked for.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from effllm.telemetry.sources.base import EnergyMeter, Quantity, Source

_MEANS = ("utilization_gpu", "utilization_memory", "sm_clock_mhz", "memory_clock_mhz")
_HIGHEST = ("temperature_c", "foreign_utilization")


def of_device(quantity: str, place: int) -> str:
    """The name of a quantity of one of the devices."""
    return f"{quantity}@{place}"


def _together(name: str, kind: str) -> Callable[[Sequence[float]], float]:
    """How the readings of several devices become one: bytes, watts, processes and counts add up."""
    if kind == "flags":
        return _any_flag
    if name in _MEANS:
        return lambda values: math.fsum(values) / len(values)
    return max if name in _HIGHEST else math.fsum


def _any_flag(values: Sequence[float]) -> float:
    seen = 0
    for value in values:
        seen |= int(value)
    return float(seen)


class SeveralDevices(Source):
    """The sources of the devices, all of one class.

    Energy is counted device by device, because a sum would hide that one counter was reset. A quantity that one device
    does not offer is missing for all together.
    """

    def __init__(self, parts: Sequence[Source]):
        first = parts[0]
        self.name, self.min_period_s, self.in_workload = first.name, first.min_period_s, first.in_workload
        self._parts = parts
        self.meter = _meter([part.meter for part in parts])
        counted = {counter for part in parts if part.meter for counter in part.meter.counters}
        common = {name: first.quantities[name] for name in first.quantities if all(name in p.quantities for p in parts)}
        self._joined = {name: _together(name, q.kind) for name, q in common.items() if name not in counted}
        self.quantities: dict[str, Quantity] = {
            name: replace(q, meaning=f"{q.meaning}; of all devices")
            for name, q in common.items()
            if name not in counted
        }
        for place, part in enumerate(parts):
            self.quantities |= {of_device(name, place): quantity for name, quantity in part.quantities.items()}
        self.missing = {name: why for part in parts for name, why in part.missing.items()}
        self.facts = {**first.facts, "devices": [dict(part.facts) for part in parts]}
        if "memory_total_b" in first.facts:
            self.facts["memory_total_b"] = sum(part.facts["memory_total_b"] for part in parts)

    def read(self) -> dict[str, float]:
        """Every device's readings, and those of all together; SourceLost once one of them is gone."""
        return self._joining([part.read() for part in self._parts])

    def read_at_edge(self) -> dict[str, float]:
        """As `read`, as each device is read at an edge."""
        return self._joining([part.read_at_edge() for part in self._parts])

    def _joining(self, values: Sequence[dict[str, float]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, together in self._joined.items():
            read = [of_one[name] for of_one in values if name in of_one]
            if len(read) == len(values):
                found[name] = math.nan if any(map(math.isnan, read)) else together(read)
        for place, of_one in enumerate(values):
            found |= {of_device(name, place): value for name, value in of_one.items()}
        return found

    def close(self) -> None:
        """Release every device."""
        for part in self._parts:
            part.close()


def of_one(meter: EnergyMeter, place: int) -> EnergyMeter:
    """The part of a meter of several devices that is of one of them."""

    def its(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name.endswith(of_device("", place)))

    return replace(meter, counters=its(meter.counters), powers=its(meter.powers))


def _meter(meters: Sequence[EnergyMeter | None]) -> EnergyMeter | None:
    """What all devices count and the power that all report; None where they have neither in common."""
    first = meters[0]
    if first is None:
        return None
    places = range(len(meters))
    counters: tuple[str, ...] = ()
    powers: tuple[str, ...] = ()
    if all(
        meter and (meter.counters, meter.counter_scope) == (first.counters, first.counter_scope) for meter in meters
    ):
        counters = tuple(of_device(counter, place) for place in places for counter in first.counters)
    if all(meter and (meter.powers, meter.power_scope) == (first.powers, first.power_scope) for meter in meters):
        powers = tuple(of_device(power, place) for place in places for power in first.powers)
    return replace(first, counters=counters, powers=powers) if counters or powers else None
