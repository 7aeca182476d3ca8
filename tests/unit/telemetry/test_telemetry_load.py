"""The load that is not ours: read from trees of /proc and /sys/fs/cgroup made by hand, and what rows say of it."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from effllm.results.telemetry import DeviceInfo, TelemetrySummary
from effllm.telemetry import busy, validity
from effllm.telemetry.readings import Readings
from effllm.telemetry.sources.base import SourceUnavailable
from effllm.telemetry.sources.load import LoadSource, job_cpu_s, job_root
from effllm.telemetry.summary import Summary
from effllm.telemetry.windows import Edge, WindowRecord

PRESSURE = "some avg10=1.00 avg60=0.10 avg300=0.01 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


class Machine:
    """Two cores that this process may use and one that it may not, as the kernel shows them."""

    def __init__(self, root: Path):
        self.proc, self.cgroup = root / "proc", root / "cgroup"
        self.group = self.cgroup / "slice" / "job"
        self.write(self.proc / str(os.getpid()) / "cgroup", "0::/slice/job\n")
        self.write(self.proc / "pressure" / "cpu", PRESSURE.format(2_000_000))
        self.write(self.group / "cpu.pressure", PRESSURE.format(1_500_000))
        self.write(self.group / "cpu.stat", "usage_usec 9\nnr_periods 8\nnr_throttled 3\nthrottled_usec 250000\n")
        self.write(self.cgroup / "cpu.stat", "usage_usec 9\n")
        self.cpus()

    def cpus(self, busy: int = 0, idle: int = 0, steal: int = 0) -> None:
        """Ticks of each of the two cores; the third is always busy with others' work."""
        usable = f"{busy} 0 0 {idle} 0 50 50 {steal} 0 0"
        lines = {"cpu": "9 9 9 9 9 9 9 9 9 9", "cpu3": usable, "cpu5": usable, "cpu6": "999 9 9 9 9 9 9 99 0 0"}
        self.write(self.proc / "stat", "".join(f"{name} {ticks}\n" for name, ticks in lines.items()) + "intr 1 2\n")

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def source(self, own_s: float = 0.0) -> LoadSource:
        return LoadSource(os.getpid(), self.proc, self.cgroup, lambda: own_s)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    return Machine(tmp_path)


def test_only_the_usable_cores_count_and_no_interrupts(machine: Machine) -> None:
    machine.cpus(busy=150, idle=40, steal=10)
    assert machine.source(own_s=1.25).read() == {
        "busy_s": pytest.approx(3.0),
        "idle_s": pytest.approx(0.8),
        "steal_s": pytest.approx(0.2),
        "own_s": 1.25,
        "pressure_s": 2.0,
        "cgroup_pressure_s": 1.5,
        "throttled_s": 0.25,
        "throttled_periods": 3.0,
    }


def test_the_controllers_of_version_1_are_read_too(machine: Machine) -> None:
    machine.write(machine.proc / str(os.getpid()) / "cgroup", "4:cpu,cpuacct:/job\n3:memory:/other\n0::/\n")
    machine.write(machine.cgroup / "cpu,cpuacct" / "job" / "cpu.stat", "nr_throttled 2\nthrottled_time 500000000\n")
    machine.write(machine.cgroup / "memory" / "other" / "cpu.stat", "nr_throttled 9\nthrottled_time 900000000\n")
    values = machine.source().read()
    assert (values["throttled_s"], values["throttled_periods"]) == (0.5, 2.0)


def test_what_the_kernel_does_not_keep_is_missing_with_a_reason(machine: Machine) -> None:
    for path in (machine.proc / "pressure" / "cpu", machine.group / "cpu.pressure", machine.group / "cpu.stat"):
        path.unlink()
    source = machine.source()
    assert source.read().keys() == {"busy_s", "idle_s", "steal_s", "own_s"}
    assert source.missing.keys() == {"pressure_s", "cgroup_pressure_s", "throttled_s", "throttled_periods"}
    assert "no record of pressure" in source.missing["pressure_s"]
    machine.write(machine.proc / "stat", "cpu 1 1 1 1 1 1 1 1 1 1\n")
    with pytest.raises(SourceUnavailable, match="no line for the cores"):
        machine.source()


def test_ours_is_the_outermost_snakemake_above_with_all_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EFFLLM_RUNS", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert job_root(os.getpid()) == os.getpid()
    monkeypatch.setenv("EFFLLM_RUNS", f"boot/pid:[1]/{os.getpid()}/77 boot/pid:[1]/4194303/1")
    # A job of this process, and another one beside it.
    outer = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    inner = (
        "import os; os.environ['EFFLLM_RUNS'] += f' boot/pid:[1]/{os.getppid()}/5'\n"
        "from effllm.telemetry.sources.load import job_root; print(job_root(os.getpid()))"
    )
    found = subprocess.run([sys.executable, "-c", outer, inner], capture_output=True, text=True, check=True)
    assert int(found.stdout) == os.getpid()


def test_a_job_of_the_same_run_is_no_other_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations run side by side, on a core each."""
    monkeypatch.setenv("EFFLLM_RUNS", f"boot/pid:[1]/{os.getpid()}/77")
    spin = "import time\nprint(flush=True)\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    rest = "input()"
    with _job(spin) as spinning, _job(rest) as resting:
        spinning.stdout.readline()
        before = job_cpu_s(resting.pid)
        spinning.stdout.readline()
        assert job_cpu_s(resting.pid) - before >= 0.2
        for job in (spinning, resting):
            job.communicate("\n")
        assert job_cpu_s(os.getpid()) - before >= 0.2


def _job(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _summary(machine: Machine, duration_s: float, own_s: float, **ticks: int) -> dict:
    """Figures of a window in which the cores did `ticks` of work each and the job `own_s` of that."""
    edges = []
    for kind, time_ns, used in (("begin", 0, 0.0), ("end", int(duration_s * 1e9), own_s)):
        machine.cpus(**(ticks if used else {}))
        source = machine.source(used)
        counters = {f"load.{name}": (time_ns, value) for name, value in source.read().items()}
        edges.append(Edge(kind, time_ns, time_ns, time_ns, time_ns, counters))
    return Summary([WindowRecord("w", 0, edges)], {"load": source}, Readings(lambda *_: ([], [])), "cpu").figures()


def _cores(other: float | None, steal: float, idle: float) -> dict:
    return {"other_cpu_fraction": other, "steal_fraction": steal, "idle_cpu_fraction": idle}


def test_figures_are_shares_of_the_usable_cores_time(machine: Machine) -> None:
    summary = _summary(machine, 2.0, 1.0, busy=140, idle=40, steal=20)
    assert summary.other_cpu_fraction == pytest.approx((2.8 - 1.0) / 4)
    assert summary.steal_fraction == pytest.approx(0.4 / 4)
    assert summary.idle_cpu_fraction == pytest.approx(0.8 / 4)
    assert summary.throttled_periods == 0


def test_what_ticks_cannot_tell_is_not_measured(machine: Machine) -> None:
    summary = _summary(machine, 0.1, 0.1, busy=10)
    assert summary.other_cpu_fraction is None
    assert "shorter than 0.2 s" in summary.reasons["other_cpu_fraction"]
    # A container that shows an idle machine.
    summary = _summary(machine, 2.0, 3.0, idle=200)
    assert summary.other_cpu_fraction is None
    assert "0 s of CPU time where the job alone used 3 s" in summary.reasons["other_cpu_fraction"]


def _told(**figures: float | None) -> TelemetrySummary:
    return TelemetrySummary(status="ok", reason=None, windows=1, duration_s=10.0, reasons={}, **figures)


@pytest.mark.parametrize(
    ("figures", "severity", "words"),
    [
        (_cores(other=0.481, steal=0.0, idle=0.0), "error", "other processes took 48.1%"),
        (_cores(other=0.01, steal=0.3, idle=0.1), "error", "guests took 30.0%"),
        (_cores(other=None, steal=0.3, idle=0.1), "error", "guests took 30.0%"),
        (_cores(other=0.2, steal=0.0, idle=0.7), "warning", "processes took 20.0%"),
        ({"throttled_fraction": 0.12}, "error", "held the job back for 12.0% of the time"),
        (
            {"foreign_processes": 2, "foreign_memory_peak_gb": 3.0},
            "error",
            "2 other processes used the device (memory 3",
        ),
    ],
)
def test_what_others_took_is_a_finding_with_the_figure(figures: dict, severity: str, words: str) -> None:
    (finding,) = validity.check_disturbance(_told(**figures))
    assert (finding.rule, finding.severity) == ("disturbed", severity)
    assert finding.message.startswith("disturbed: ") and words in finding.message


def test_a_quiet_machine_and_one_that_tells_nothing_are_not_disturbed() -> None:
    quiet = {"other_cpu_fraction": 0.03, "steal_fraction": 0.01, "idle_cpu_fraction": 0.1, "throttled_fraction": 0.0}
    assert validity.check_disturbance(_told(**quiet)) == []
    assert validity.check_disturbance(_told(**dict.fromkeys(quiet))) == []


def test_the_reason_of_a_row_begins_with_what_others_did() -> None:
    findings = [
        validity.Finding("interval", "error", "the interval is wide"),
        *validity.check_disturbance(_told(other_cpu_fraction=0.5)),
    ]
    status, reason = validity.status_of(findings)
    assert status == "invalid"
    assert reason.startswith("disturbed: other processes took 50.0%") and reason.endswith("; the interval is wide")


def test_a_sentence_is_said_before_time_is_spent_where_others_are_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(busy_s: float, own_s: float, steal_s: float = 0.0) -> str | None:
        readings = iter(
            [
                {"busy_s": 10.0, "own_s": 5.0, "steal_s": 1.0},
                {"busy_s": 10.0 + busy_s, "own_s": 5.0 + own_s, "steal_s": 1.0 + steal_s},
            ]
        )
        source = SimpleNamespace(read=lambda: next(readings), facts={"cores": 2})
        clock = iter([0.0, 0.25])
        monkeypatch.setattr(busy, "LoadSource", lambda: source)
        monkeypatch.setattr(busy, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None))
        return busy.busy_sentence()

    assert "others take 80% of the time of its 2 usable cores" in look(busy_s=0.45, own_s=0.05)
    assert "others take 40%" in look(busy_s=0.05, own_s=0.05, steal_s=0.2)
    assert look(busy_s=0.5, own_s=0.48) is None


def test_others_on_the_device_are_told_before_time_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_cores_sentence", lambda: None)

    def look(processes: list[int] | None) -> str | None:
        info = DeviceInfo(device="cuda:0", kind="cuda", name="a card", memory_total_gb=1.0, processes=processes)
        monkeypatch.setattr(busy, "device_info", lambda device: info)
        return busy.busy_sentence("cuda:0")

    assert "2 other processes are on cuda:0" in look([7, 8])
    assert look([]) is None
    assert look(None) is None
