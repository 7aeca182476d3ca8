"""What else the machine did: CPU time of others, of the hypervisor, pressure, and the cgroup's throttling.

Upstream: proc_stat(5), Documentation/accounting/psi.rst and Documentation/admin-guide/cgroup-v2.rst of the kernel.
Everything is a counter, read at the edges of windows. Ours is the Snakemake that started the workload and everything
below it: launcher, stage, ranks and sampler, and jobs beside it, which that Snakemake lets run on cores of their own.
Without one it is the workload's process tree.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from effllm.telemetry.sources.base import Quantity, Source, SourceLost, SourceUnavailable
from effllm.telemetry.sources.host import CGROUP, PROC, cpu_seconds, descendants

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
# Set by `effllm.runtime.lifeline`, whose imports are too heavy for the sampler.
_RUNS = "EFFLLM_RUNS"
_QUANTITIES = {
    "busy_s": Quantity("s", "counter", "CPU time of all processes on the usable cores, interrupts left out"),
    "idle_s": Quantity("s", "counter", "time in which usable cores had nothing to do"),
    "steal_s": Quantity("s", "counter", "time in which the hypervisor ran others on the usable cores"),
    "own_s": Quantity(
        "s", "counter", "CPU time of this run: workload, sampler, launcher, Snakemake and its other jobs"
    ),
    "pressure_s": Quantity("s", "counter", "time in which some process of the machine waited for a core"),
    "cgroup_pressure_s": Quantity("s", "counter", "time in which some process of the cgroup waited for a core"),
    "throttled_s": Quantity("s", "counter", "time in which the quota of a cgroup held the job back"),
    "throttled_periods": Quantity("1", "counter", "periods in which the quota of a cgroup was used up"),
}


class LoadSource(Source):
    """Counters of the cores that `root_pid` may run on. `proc` and `cgroup` are mounts; `own_cpu_s` is for tests."""

    name = "load"
    min_period_s = 1.0
    in_workload = False
    meter = None

    def __init__(
        self,
        root_pid: int | None = None,
        proc: Path = PROC,
        cgroup: Path = CGROUP,
        own_cpu_s: Callable[[], float] | None = None,
    ):
        root_pid = os.getpid() if root_pid is None else root_pid
        self._stat = proc / "stat"
        self._cpus = {f"cpu{index}" for index in os.sched_getaffinity(root_pid)}
        self._own_cpu_s = own_cpu_s or (lambda: job_cpu_s(root_pid))
        if not self._stat.is_file():
            raise SourceUnavailable(f"there is no {self._stat}: the load of the machine needs Linux")
        if not self._cpus & _lines(self._stat).keys():
            raise SourceUnavailable(f"{self._stat} has no line for the cores that this process may run on")
        directories = list(_cgroups(proc / str(root_pid) / "cgroup", cgroup))
        self.missing: dict[str, str] = {}
        self._pressure = self._first("pressure_s", [proc / "pressure" / "cpu"])
        self._cgroup_pressure = self._first("cgroup_pressure_s", [path / "cpu.pressure" for path in directories])
        self._throttling = [path / "cpu.stat" for path in directories if _throttled(path / "cpu.stat")]
        if not self._throttling:
            reason = "no cgroup of this process counts throttling"
            self.missing |= {"throttled_s": reason, "throttled_periods": reason}
        self.quantities = {name: quantity for name, quantity in _QUANTITIES.items() if name not in self.missing}
        self.facts = {"cores": len(self._cpus), "job_pid": job_root(root_pid)}

    def _first(self, quantity: str, paths: list[Path]) -> Path | None:
        for path in paths:
            try:
                _pressure_s(path)
            except (OSError, ValueError, IndexError):
                # Without CONFIG_PSI, or with psi=0, the file is missing or cannot be read.
                continue
            return path
        self.missing[quantity] = "the kernel keeps no record of pressure on " + " or ".join(
            map(str, paths) if paths else ["it"]
        )
        return None

    def read(self) -> dict[str, float]:
        """Every offered counter, in s (see Source.read)."""
        values: dict[str, float] = {}
        try:
            values |= cpu_times(self._stat, self._cpus)
            values["own_s"] = self._own_cpu_s()
            if self._pressure:
                values["pressure_s"] = _pressure_s(self._pressure)
            if self._cgroup_pressure:
                values["cgroup_pressure_s"] = _pressure_s(self._cgroup_pressure)
            if self._throttling:
                pairs = [pair for path in self._throttling if (pair := _throttled(path))]
                values["throttled_s"] = sum(seconds for seconds, _ in pairs)
                values["throttled_periods"] = float(sum(periods for _, periods in pairs))
        except (OSError, ValueError, IndexError) as error:
            raise SourceLost(f"the load of the machine cannot be read: {error}") from error
        return values


def cpu_times(stat: Path, cpus: set[str]) -> dict[str, float]:
    """`busy_s`, `idle_s` and `steal_s` of the named CPUs ("cpu0") since the machine was started."""
    ticks = [fields for name, fields in _lines(stat).items() if name in cpus]
    user, nice, system, idle, waiting, _, _, steal = (sum(column) * _TICK_S for column in zip(*ticks, strict=True))
    return {"busy_s": user + nice + system, "idle_s": idle + waiting, "steal_s": steal}


def _lines(stat: Path) -> dict[str, list[int]]:
    """user, nice, system, idle, iowait, irq, softirq and steal in ticks by CPU; guests are in user and nice."""
    words = (line.split() for line in stat.read_text().splitlines() if line.startswith("cpu"))
    return {name: [int(field) for field in (fields + ["0"] * 8)[:8]] for name, *fields in words}


def job_root(root_pid: int) -> int:
    """The process whose tree is ours, of which `root_pid` is one.

    That is the Snakemake that started it, the outermost of several; without one torchrun, if it started this process as
    a rank, or else `root_pid` itself.
    """
    ancestors = _ancestors(root_pid)
    for ancestor in reversed(ancestors):
        if ancestor in _run_pids():
            return ancestor
    return ancestors[0] if "LOCAL_RANK" in os.environ and ancestors else root_pid


def job_cpu_s(root_pid: int) -> float:
    """CPU seconds of the tree of `job_root`, ended children included."""
    total_s = 0.0
    for pid in descendants(job_root(root_pid)):
        try:
            total_s += cpu_seconds(pid)
        except (FileNotFoundError, ProcessLookupError):
            # It ended since the tree was listed; its time has moved to the parent that waited for it.
            continue
    return total_s


def _run_pids() -> set[int]:
    return {int(run.split("/")[-2]) for run in os.environ.get(_RUNS, "").split()}


def _ancestors(pid: int) -> list[int]:
    """Parent, grandparent and so on, as far as this PID namespace shows them."""
    found: list[int] = []
    while pid > 1:
        try:
            pid = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            break
        if pid:
            found.append(pid)
    return found


def _cgroups(membership: Path, mount: Path) -> Iterator[Path]:
    """Directories of the CPU controller that a process is in, innermost first: version 2, hybrid or 1."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top in (mount / controllers, mount / "cpu") if controllers else (mount, mount / "unified"):
            inner = top / path.strip("/")
            while inner.is_relative_to(top):
                if (inner / "cpu.stat").is_file() or (inner / "cpu.pressure").is_file():
                    yield inner
                inner = inner.parent


def _throttled(path: Path) -> tuple[float, int] | None:
    """(seconds, periods) of throttling by a cgroup; None where it counts none."""
    try:
        values = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return None
    if "throttled_usec" in values:
        return int(values["throttled_usec"]) / 1e6, int(values.get("nr_throttled", 0))
    if "throttled_time" in values:
        return int(values["throttled_time"]) / 1e9, int(values.get("nr_throttled", 0))
    return None


def _pressure_s(path: Path) -> float:
    """Seconds in which some task waited: `some avg10=... total=<us>`."""
    line = next(line for line in path.read_text().splitlines() if line.startswith("some"))
    return int(line.rpartition("total=")[2]) / 1e6
