"""Real sessions on this machine: a sampler process beside a real workload, including how both of them die."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from effllm.results.telemetry import TelemetrySummary
from effllm.telemetry import Telemetry
from effllm.telemetry.sampler_process import SamplerProcess

ROOT = Path(__file__).resolve().parents[3]

# Holds a known amount of memory and burns a known share of a core: half of each 10 ms, by its own CPU clock, so that
# a machine busy with other things stretches its time and not its use.
WORKLOAD = """
import sys, time
block = bytearray(400_000_000)
print("up", flush=True)
sys.stdin.readline()
start, cpu = time.monotonic(), time.process_time()
while time.monotonic() - start < 3.0:
    used = time.process_time() + 0.01
    while time.process_time() < used:
        pass
    time.sleep(0.01)
print(time.process_time() - cpu, time.monotonic() - start, flush=True)
sys.stdin.readline()
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, timeout_s: float = 20.0) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return condition()


def test_memory_and_cpu_use_of_a_known_workload_are_measured_within_5_percent(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", WORKLOAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert child.stdout.readline() == "up\n"
        with open(f"/proc/{child.pid}/statm") as file:
            resident_gb = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
        with Telemetry(tmp_path, period_s=0.05, root_pid=child.pid) as telemetry:
            with telemetry.window("burn"):
                child.stdin.write("go\n")
                burnt_s, lasted_s = map(float, child.stdout.readline().split())
            with pytest.raises(RuntimeError, match="only after the session"):
                telemetry.summary("burn")
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    summary = telemetry.summary("burn")
    usable = json.loads((tmp_path / "windows.json").read_text())["sources"]["host"]["facts"]["cores_usable"]
    assert resident_gb > 0.4
    assert summary.memory_host_avg_gb == pytest.approx(resident_gb, rel=0.05)
    assert summary.memory_host_peak_gb == pytest.approx(resident_gb, rel=0.05)
    assert summary.util_cpu * usable * summary.duration_s == pytest.approx(burnt_s, rel=0.05)
    assert summary.duration_s == pytest.approx(lasted_s, rel=0.05)


def test_memory_is_averaged_over_time_and_not_over_the_whole_session(tmp_path):
    with Telemetry(tmp_path, period_s=0.02, sources=["host"]) as telemetry:
        with telemetry.window("before"):
            time.sleep(0.2)
        block = bytearray(200_000_000)
        with telemetry.window("after"):
            time.sleep(0.2)
        del block
    before, after = telemetry.summary("before"), telemetry.summary("after")
    assert after.memory_host_avg_gb - before.memory_host_avg_gb == pytest.approx(0.2, rel=0.05)


def test_the_sampler_is_no_part_of_what_is_measured(tmp_path):
    with Telemetry(tmp_path, period_s=0.02, sources=["host"]) as telemetry, telemetry.window("run"):
        with open(f"/proc/{telemetry.sampler_pid}/statm") as file:
            sampler_b = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/statm") as file:
            own_b = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        time.sleep(0.2)
    samples = pq.read_table(tmp_path / "samples.parquet", filters=[("quantity", "=", "rss_b")])
    assert sampler_b > 5e6
    for origin, resident_b in zip(samples["origin"].to_pylist(), samples["value"].to_pylist(), strict=True):
        assert abs(resident_b - own_b) < sampler_b / 2, origin


def test_figures_that_a_cpu_machine_cannot_give_are_none_with_a_reason(tmp_path):
    with Telemetry(tmp_path, sources=["host"]) as telemetry, telemetry.window("run"):
        pass
    summary = telemetry.summary("run")
    assert summary.memory_device_avg_gb is None and summary.energy_j is None
    assert "device is the CPU" in summary.reasons["memory_device_avg_gb"]
    assert "source rapl was not asked for" in summary.reasons["energy_j"]
    unmeasured = {key for key, value in summary if value is None and key not in ("reason", "devices")}
    assert unmeasured == set(summary.reasons)
    assert TelemetrySummary.model_validate_json(summary.model_dump_json()) == summary


def test_a_window_shorter_than_the_period_has_memory_from_its_edges(tmp_path):
    with Telemetry(tmp_path, period_s=5.0, sources=["host"]) as telemetry, telemetry.window("blink"):
        pass
    summary = telemetry.summary("blink")
    assert summary.samples == 0 and summary.status == "ok"
    assert summary.memory_host_avg_gb > 0.01
    assert summary.util_cpu is None and "too coarse" in summary.reasons["util_cpu"]


def test_samples_and_windows_are_written_and_the_spools_removed(tmp_path):
    with Telemetry(tmp_path, period_s=0.02, sources=["host"]) as telemetry:
        telemetry.begin_window("train")
        time.sleep(0.1)
        telemetry.pause("train")
        time.sleep(0.1)
        telemetry.resume("train")
        record = telemetry.end_window("train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.parquet", "windows.json"]
    samples = pq.read_table(tmp_path / "samples.parquet")
    assert set(samples["origin"].to_pylist()) == {"sampler", "edge"}
    assert {"rss_b", "cpu_s", "read_ms"} == set(samples["quantity"].to_pylist())
    written = json.loads((tmp_path / "windows.json").read_text())["windows"][0]
    assert written["name"] == "train" and len(written["paused"]) == 1
    assert [edge["kind"] for edge in written["edges"]] == ["begin", "pause", "resume", "end"]
    pause_start, pause_end = record.paused[0]
    whole_s = (record.end_ns - record.start_ns) / 1e9
    assert record.duration_s == pytest.approx(whole_s - (pause_end - pause_start) / 1e9)
    assert 0.1 <= record.duration_s < whole_s - 0.1


def test_a_sampler_killed_half_way_invalidates_the_window_with_the_reason(tmp_path):
    with Telemetry(tmp_path, period_s=0.02, sources=["host"]) as telemetry:
        with telemetry.window("before"):
            time.sleep(0.3)
        telemetry.begin_window("during")
        os.kill(telemetry.sampler_pid, signal.SIGKILL)
        wait_until(lambda: not alive(telemetry.sampler_pid))
        record = telemetry.end_window("during")
    assert (record.status, record.reason) == ("invalid", "the sampler process was killed by signal 9")
    assert telemetry.summary("during").status == "invalid"
    assert telemetry.summary("during").memory_host_avg_gb > 0.01
    assert telemetry.summary("before").status == "ok"


def test_a_sampler_that_is_held_up_starves_the_window(tmp_path):
    with Telemetry(tmp_path, period_s=0.05, sources=["host"]) as telemetry, telemetry.window("run"):
        os.kill(telemetry.sampler_pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(telemetry.sampler_pid, signal.SIGCONT)
    assert telemetry.windows[0].status == "invalid"
    assert "the sampler starved: host was not read" in telemetry.windows[0].reason


def test_a_sampler_that_cannot_start_costs_the_window_and_not_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Telemetry(tmp_path, sources=["host"]) as telemetry, telemetry.window("run"):
        pass
    assert telemetry.windows[0].status == "invalid"
    assert "the sampler process ended with exit code 1" in telemetry.windows[0].reason


def test_the_sampler_tells_why_it_failed(tmp_path):
    sampler = SamplerProcess(tmp_path, ["no-such-source"], [], 0.1, {})
    sampler.stop()
    assert "there is no telemetry source 'no-such-source'" in sampler.failure


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a forked child that keeps the pipe open"])
def test_the_sampler_does_not_outlive_a_killed_workload(tmp_path, forks):
    script = f"""
        import os, time
        from pathlib import Path
        from effllm.telemetry import Telemetry
        with Telemetry(Path({str(tmp_path)!r}), period_s=0.05, sources=["host"]) as telemetry:
            worker = 0
            if {forks}:
                worker = os.fork()
                if worker == 0:
                    time.sleep(60)
                    os._exit(0)
            print(telemetry.sampler_pid, worker, flush=True)
            time.sleep(60)
    """
    workload = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    sampler_pid, worker_pid = map(int, workload.stdout.readline().split())
    assert alive(sampler_pid)
    workload.kill()
    workload.wait()
    workload.stdout.close()
    try:
        assert wait_until(lambda: not alive(sampler_pid), timeout_s=10)
    finally:
        if forks:
            os.kill(worker_pid, signal.SIGKILL)


def test_a_block_that_raises_leaves_an_invalid_window_and_the_error(tmp_path):
    with pytest.raises(ZeroDivisionError), Telemetry(tmp_path, sources=["host"]) as telemetry:
        telemetry.begin_window("outer")
        with telemetry.window("inner"):
            1 / 0  # noqa: B018
    reasons = {window.name: window.reason for window in telemetry.windows}
    assert reasons == {"inner": "the workload raised ZeroDivisionError", "outer": "the window was never ended"}


def test_misuse_is_refused_with_the_name_at_fault(tmp_path):
    with pytest.raises(ValueError, match="device 'tpu'"):
        Telemetry(tmp_path, device="tpu")
    with pytest.raises(ValueError, match="period_s is 0"):
        Telemetry(tmp_path, period_s=0)
    with Telemetry(tmp_path, sources=["host"]) as telemetry:
        with pytest.raises(ValueError, match="'a' is not open"):
            telemetry.end_window("a")
        telemetry.begin_window("a")
        with pytest.raises(ValueError, match="'a' is already open"):
            telemetry.begin_window("a")
        with pytest.raises(ValueError, match="'a' is not paused"):
            telemetry.resume("a")
        telemetry.pause("a")
        with pytest.raises(ValueError, match="'a' is paused already"):
            telemetry.pause("a")
        telemetry.end_window("a")
    with pytest.raises(KeyError, match="no window was called 'b'"):
        telemetry.summary("b")


def test_importing_telemetry_and_measuring_a_cpu_loads_neither_torch_nor_transformers(tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        from effllm.telemetry import Telemetry
        with Telemetry(Path({str(tmp_path)!r})) as telemetry, telemetry.window("run"):
            pass
        telemetry.summary("run")
        print(sorted({{"torch", "transformers", "scipy"}} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_sampler_loads_no_heavy_package():
    script = "import sys, effllm.telemetry.sampler; print(sorted({'numpy', 'pyarrow', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
