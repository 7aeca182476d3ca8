"""RAPL: energy counters of x86 processor packages and their DRAM, through the Linux powercap files.

Upstream: Documentation/power/powercap/powercap.rst in the Linux kernel. `energy_uj` counts micro-joules and
starts again from zero past `max_energy_range_uj`, on a busy server every few minutes to hours.
"""

from pathlib import Path

from effllm.telemetry.sources.base import EnergyMeter, Quantity, Source, SourceLost, SourceUnavailable

POWERCAP = Path("/sys/class/powercap")
_UPDATE_S = 0.001


class RaplSource(Source):
    """One counter for each package and, where the processor has it, for the package's DRAM.

    The sub-domains core and uncore are part of their package and `psys` covers the platform including the
    packages: neither may be added, so neither is read. `intel-rapl-mmio` repeats the packages and is left
    out.
    """

    name = "rapl"
    min_period_s = 0.01
    in_workload = False

    def __init__(self, root: Path = POWERCAP):
        self._files: dict[str, Path] = {}
        self.quantities: dict[str, Quantity] = {}
        for domain in sorted(root.glob("intel-rapl:*")):
            self._add_domain(domain)
        if not self._files:
            raise SourceUnavailable(f"no RAPL package domain under {root}")
        dram = any(name.startswith("dram") for name in self._files)
        scope = "package+dram" if dram else "package"
        self.meter = EnergyMeter(tuple(self._files), scope, counter_update_s=_UPDATE_S)
        self.missing: dict[str, str] = {}
        self.facts = {"domains": list(self._files)}
        try:
            self.read()
        except SourceLost as error:
            raise SourceUnavailable(str(error)) from error

    def _add_domain(self, domain: Path) -> None:
        try:
            label = (domain / "name").read_text().strip()
            if label.startswith("package-"):
                key = f"package{label.removeprefix('package-')}_energy_j"
            elif label == "dram":
                key = f"dram{domain.name.split(':')[1]}_energy_j"
            else:
                return
            wraps_at = int((domain / "max_energy_range_uj").read_text()) / 1e6
        except OSError as error:
            raise SourceUnavailable(f"RAPL domain {domain} cannot be read: {error.strerror}") from error
        self._files[key] = domain / "energy_uj"
        self.quantities[key] = Quantity("J", "counter", f"energy of RAPL domain {label}", wraps_at)

    def read(self) -> dict[str, float]:
        """Counter of every domain in J (see Source.read)."""
        try:
            return {key: int(path.read_text()) / 1e6 for key, path in self._files.items()}
        except PermissionError as error:
            raise SourceLost(
                f"{error.filename} is readable by root alone; an administrator can allow it with chmod a+r"
            ) from error
        except OSError as error:
            raise SourceLost(f"RAPL counter {error.filename} cannot be read any more: {error.strerror}") from error
