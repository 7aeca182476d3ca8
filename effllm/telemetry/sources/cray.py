"""HPE Cray EX power management counters: energy and power of a node and its parts, from `/sys/cray/pm_counters`.

Upstream: HPE Cray EX "PM Counters" documentation. Each file holds a value, its unit and the time of the scan,
as in `1234 J 1633520213331937 us`; scans run ten times a second.
"""

import re
from pathlib import Path

from effllm.telemetry.sources.base import EnergyMeter, Quantity, Source, SourceLost, SourceUnavailable

PM_COUNTERS = Path("/sys/cray/pm_counters")
_COUNTER = re.compile(r"^(?:(?P<part>cpu|memory|accel\d+)_)?(?P<what>energy|power)$")


class CraySource(Source):
    """Node, processor, memory and accelerator counters, whichever of them the node controller offers."""

    name = "cray_pm"
    min_period_s = 0.1
    in_workload = False

    def __init__(self, root: Path = PM_COUNTERS):
        if not root.is_dir():
            raise SourceUnavailable(f"there is no {root}: this is not an HPE Cray EX node")
        self._files: dict[str, Path] = {}
        self.quantities: dict[str, Quantity] = {}
        for path in sorted(root.iterdir()):
            match = _COUNTER.match(path.name)
            if match is None:
                continue
            part = match["part"] or "node"
            energy = match["what"] == "energy"
            key = f"{part}_energy_j" if energy else f"{part}_power_w"
            self._files[key] = path
            self.quantities[key] = Quantity(
                "J" if energy else "W", "counter" if energy else "gauge", f"{match['what']} of the {part}"
            )
        if not self._files:
            raise SourceUnavailable(f"{root} holds no energy or power counter")
        self.meter = self._meter()
        self.missing: dict[str, str] = {}
        self.facts = {"counters": list(self._files)}
        try:
            self.read()
        except SourceLost as error:
            raise SourceUnavailable(str(error)) from error

    def _meter(self) -> EnergyMeter | None:
        """The narrowest scope that holds the whole processor: its parts where counted, else the node."""
        for parts, scope in ((("cpu", "memory"), "cpu+memory"), (("cpu",), "cpu"), (("node",), "node")):
            energies = tuple(f"{part}_energy_j" for part in parts)
            if all(key in self._files for key in energies):
                powers = tuple(f"{part}_power_w" for part in parts)
                powers = powers if all(key in self._files for key in powers) else ()
                return EnergyMeter(
                    energies, scope, self.min_period_s, powers, scope if powers else None, self.min_period_s
                )
        return None

    def read(self) -> dict[str, float]:
        """Every counter, J or W (see Source.read)."""
        values = {}
        for key, path in self._files.items():
            try:
                values[key] = float(path.read_text().split()[0])
            except (OSError, IndexError, ValueError) as error:
                raise SourceLost(f"{path} cannot be read: {error}") from error
        return values
