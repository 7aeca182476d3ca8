"""hwmon power meters of NVIDIA Grace: power of a Grace socket, its CPU rail, its I/O and the whole module.

Upstream: Linux Documentation/hwmon/acpi_power_meter.rst, and the power chapter of NVIDIA's Grace Performance
Tuning Guide, which names the meters by the text in `power1_oem_info`.
"""

import re
from pathlib import Path

from effllm.telemetry.sources.base import EnergyMeter, Quantity, Source, SourceLost, SourceUnavailable

HWMON = Path("/sys/class/hwmon")
_LABEL = re.compile(r"^(?P<part>Grace|CPU|SysIO|Module)\s+Power\s+Socket\s+(?P<socket>\d+)$")
# Widest first; a meter of a wider part contains the narrower ones, so exactly one kind is summed over
# sockets.
_PROCESSOR_PARTS = (("grace", "grace"), ("cpu", "cpu"))


class HwmonSource(Source):
    """Gauges only: Grace's meters give power averaged over an interval and no energy counter."""

    name = "hwmon"
    in_workload = False

    def __init__(self, root: Path = HWMON):
        self._files: dict[str, Path] = {}
        self.quantities: dict[str, Quantity] = {}
        intervals_s = [0.1]
        for meter in sorted(root.glob("hwmon*/device")):
            label = self._text(meter / "power1_oem_info")
            match = _LABEL.match(label or "")
            if match is None:
                continue
            key = f"{match['part'].lower()}{match['socket']}_power_w"
            self._files[key] = meter / "power1_average"
            self.quantities[key] = Quantity("W", "gauge", f"{label}, averaged by the meter")
            interval_ms = self._text(meter / "power1_average_interval")
            if interval_ms is not None:
                intervals_s.append(float(interval_ms) / 1e3)
        if not self._files:
            raise SourceUnavailable(f"no power meter of a Grace processor under {root}")
        # Asking more often than the meter averages returns the same number again.
        self.min_period_s = max(intervals_s)
        self.meter = self._meter()
        self.missing = {"energy": "Grace's meters report power, not energy"}
        self.facts = {"meters": list(self._files), "averaging_s": self.min_period_s}
        try:
            self.read()
        except SourceLost as error:
            raise SourceUnavailable(str(error)) from error

    @staticmethod
    def _text(path: Path) -> str | None:
        return path.read_text().strip() if path.is_file() else None

    def _meter(self) -> EnergyMeter | None:
        for part, scope in _PROCESSOR_PARTS:
            powers = tuple(key for key in self._files if re.fullmatch(rf"{part}\d+_power_w", key))
            if powers:
                return EnergyMeter(powers=powers, power_scope=scope, power_update_s=self.min_period_s)
        return None

    def read(self) -> dict[str, float]:
        """Power of every meter in W (see Source.read)."""
        try:
            return {key: int(path.read_text()) / 1e6 for key, path in self._files.items()}
        except (OSError, ValueError) as error:
            raise SourceLost(f"a Grace power meter cannot be read: {error}") from error
