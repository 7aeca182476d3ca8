"""Host: resident memory and CPU time of a process and all its descendants, read from Linux' /proc.

Upstream: proc_pid_stat(5), clock_getcpuclockid(3). Reading is kept to two files and one clock call a process,
because this runs ten times a second beside the workload.
"""

import os
import time
from collections.abc import Collection
from pathlib import Path

from effllm.telemetry.sources.base import Quantity, Source, SourceLost, SourceUnavailable

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_B = os.sysconf("SC_PAGE_SIZE")
# Listing descendants opens one file a thread; a process with hundreds of threads makes that the dearest part.
_TREE_REFRESH_S = 1.0


class HostSource(Source):
    """Resident set size and CPU seconds, summed over the process tree below `root_pid`.

    Pages shared between processes of the tree count once in each of them. CPU time of descendants that have
    ended is kept, through the times of waited-for children that Linux adds to the parent. The sampler itself
    (`exclude`) is a child of the workload but no part of it.
    """

    name = "host"
    min_period_s = 0.0
    in_workload = False
    meter = None

    def __init__(self, root_pid: int | None = None, exclude: Collection[int] = ()):
        if not (PROC / "self/stat").is_file():
            raise SourceUnavailable("there is no /proc with process statistics: host figures need Linux")
        self.root_pid = os.getpid() if root_pid is None else root_pid
        self.exclude = set(exclude)
        self.quantities = {
            "rss_b": Quantity("B", "gauge", "resident memory of the process tree"),
            "cpu_s": Quantity("s", "counter", "CPU time used by the process tree, ended children included"),
        }
        self.missing: dict[str, str] = {}
        self._tree: list[int] = []
        self._tree_is_fresh_until_s = 0.0
        try:
            self.facts = {"cores_usable": usable_cores(self.root_pid), "memory_total_b": memory_limit_b()}
            self.read()
        except (ProcessLookupError, SourceLost) as error:
            raise SourceUnavailable(f"there is no process {self.root_pid}") from error

    def read(self) -> dict[str, float]:
        """Resident bytes and CPU seconds of the tree; SourceLost once the root process is gone."""
        now_s = time.monotonic()
        if now_s >= self._tree_is_fresh_until_s:
            self._tree = descendants(self.root_pid, self.exclude)
            self._tree_is_fresh_until_s = now_s + _TREE_REFRESH_S
        rss_b = cpu_s = 0.0
        for pid in self._tree:
            try:
                process_rss_b, process_cpu_s = _process(pid)
            except (FileNotFoundError, ProcessLookupError) as error:
                if pid == self.root_pid:
                    raise SourceLost(f"process {pid} has ended") from error
                # It ended since the tree was listed; its CPU time has moved to the parent that waited for it.
                self._tree_is_fresh_until_s = 0.0
                continue
            rss_b += process_rss_b
            cpu_s += process_cpu_s
        return {"rss_b": rss_b, "cpu_s": cpu_s}

    def read_at_edge(self) -> dict[str, float]:
        """As `read`, with the descendants listed anew: a window may open right after its workers were started."""
        self._tree_is_fresh_until_s = 0.0
        return self.read()


def descendants(root_pid: int, exclude: Collection[int] = ()) -> list[int]:
    """`root_pid` and every process below it, less those in `exclude` and what is below them."""
    found, todo = [], [root_pid]
    while todo:
        pid = todo.pop()
        if pid in exclude:
            continue
        found.append(pid)
        try:
            for thread in os.scandir(PROC / str(pid) / "task"):
                with open(f"{thread.path}/children", "rb") as file:
                    todo.extend(int(child) for child in file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            # The thread or process ended while it was being listed.
            continue
    return found


def _process(pid: int) -> tuple[float, float]:
    """(resident bytes, CPU seconds of it and of its waited-for children) of one process."""
    cpu_s = cpu_seconds(pid)
    # stat has the resident size too, but on kernels with per-CPU counters only statm adds those of all CPUs up.
    with open(f"/proc/{pid}/statm", "rb") as file:
        resident_pages = int(file.read().split()[1])
    return resident_pages * _PAGE_B, cpu_s


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and of the children that it waited for.

    FileNotFoundError or ProcessLookupError once it is gone.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The command, in parentheses, may itself hold spaces and parentheses.
        fields = file.read().rpartition(b")")[2].split()
    return _cpu_clock_s(pid) + (int(fields[13]) + int(fields[14])) * _TICK_S


def _cpu_clock_s(pid: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond (stat counts ticks of 10 ms)."""
    try:
        # The identifier of a process' CPU clock, as clock_getcpuclockid(3) makes it:
        # MAKE_PROCESS_CPUCLOCK(pid, SCHED).
        return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    except OSError as error:
        raise ProcessLookupError(f"process {pid} has no CPU clock") from error


def usable_cores(pid: int = 0) -> float:
    """Cores that `pid` (0: this process) may use at once: its affinity, or its cgroup's quota where smaller."""
    cores = float(len(os.sched_getaffinity(pid)))
    quota = CGROUP / "cpu.max"
    if quota.is_file():
        allowed, _, period = quota.read_text().strip().partition(" ")
        if allowed != "max":
            cores = min(cores, int(allowed) / int(period))
    return cores


def memory_limit_b() -> int:
    """Bytes of memory this process may use: the machine's, or its cgroup's limit where smaller."""
    total_b = os.sysconf("SC_PHYS_PAGES") * _PAGE_B
    limit = CGROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        total_b = min(total_b, int(text))
    return total_b
