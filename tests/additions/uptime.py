"""A source of telemetry: seconds since the machine started."""

import time
from collections.abc import Mapping
from typing import Any

from effllm.telemetry.sources.base import EnergyMeter, Quantity, Source


class UptimeSource(Source):
    """The clock that does not stand still while the machine sleeps."""

    name = "uptime"
    quantities: Mapping[str, Quantity] = {"uptime_s": Quantity("s", "gauge", "time since the machine started")}
    missing: Mapping[str, str] = {}
    facts: Mapping[str, Any] = {}
    meter: EnergyMeter | None = None
    min_period_s = 0.001
    in_workload = False

    def read(self) -> dict[str, float]:
        return {"uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME)}
