"""Sources on scripted files and devices: what they read, how they name its scope, and what they say when absent."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_nvml import FakeClock, FakeGpu, FakeNvml, Trace
from replay import Replay

from effllm.telemetry.sources import OPENERS, open_source
from effllm.telemetry.sources.allocator import TorchAllocatorSource
from effllm.telemetry.sources.base import SourceLost, SourceUnavailable
from effllm.telemetry.sources.cray import CraySource
from effllm.telemetry.sources.host import HostSource, descendants, usable_cores
from effllm.telemetry.sources.hwmon import HwmonSource
from effllm.telemetry.sources.nvml import NvmlSource
from effllm.telemetry.sources.nvml_device import visible_uuid
from effllm.telemetry.sources.rapl import RaplSource


def rapl_tree(root: Path, domains: dict[str, tuple[str, int, int]]) -> Path:
    for directory, (label, energy_uj, range_uj) in domains.items():
        (root / directory).mkdir(parents=True)
        (root / directory / "name").write_text(f"{label}\n")
        (root / directory / "energy_uj").write_text(f"{energy_uj}\n")
        (root / directory / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return root


def test_rapl_sums_packages_and_dram_and_leaves_out_what_they_contain(tmp_path):
    root = rapl_tree(
        tmp_path,
        {
            "intel-rapl:0": ("package-0", 5_000_000, 262_143_328_850),
            "intel-rapl:0:0": ("core", 1_000_000, 262_143_328_850),
            "intel-rapl:0:1": ("dram", 2_000_000, 65_712_999_613),
            "intel-rapl:1": ("psys", 9_000_000, 262_143_328_850),
            "intel-rapl-mmio:0": ("package-0", 5_000_000, 262_143_328_850),
        },
    )
    source = RaplSource(root)
    assert source.read() == {"package0_energy_j": 5.0, "dram0_energy_j": 2.0}
    assert source.meter.counter_scope == "package+dram"
    assert source.quantities["dram0_energy_j"].wraps_at == pytest.approx(65_712.999613)


def test_energy_across_several_rapl_wraps_within_one_window(tmp_path):
    # 200 W on a counter of 1000 J wraps every 5 s; the window of 32 s sees six wraps.
    root = rapl_tree(tmp_path / "powercap", {"intel-rapl:0": ("package-0", 0, 1_000_000_000)})
    clock = FakeClock()
    source = RaplSource(root)
    counter = root / "intel-rapl:0/energy_uj"
    real_read = source.read

    def read():
        counter.write_text(str(int(clock.elapsed_s * 200e6) % 1_000_000_000))
        return real_read()

    source.read = read
    replay = Replay(tmp_path, clock, [source], device="cpu")
    replay.window("run", 3, 35)
    replay.finish()
    summary = replay.summary("run")
    assert summary.energy_j == pytest.approx(200 * 32, rel=0.001)
    assert (summary.energy_source, summary.energy_scope) == ("rapl: counter package0_energy_j", "package")
    assert summary.power_avg_w == pytest.approx(200, rel=0.001)


def test_rapl_that_only_root_may_read_says_so(tmp_path, monkeypatch):
    root = rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 0, 1_000)})
    read_text = Path.read_text

    def refuse(path: Path, *args, **kwargs) -> str:
        # Stands for the file mode, which does not bind tests that run as root.
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SourceUnavailable, match="readable by root alone"):
        RaplSource(root)


def test_rapl_that_vanishes_is_lost(tmp_path):
    root = rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 0, 1_000)})
    source = RaplSource(root)
    (root / "intel-rapl:0/energy_uj").unlink()
    with pytest.raises(SourceLost):
        source.read()


def cray_files(root: Path, **values: str) -> Path:
    root.mkdir(exist_ok=True)
    for name, text in values.items():
        (root / name).write_text(text)
    return root


def test_cray_prefers_the_processors_counters_over_the_nodes(tmp_path):
    counters = cray_files(
        tmp_path,
        energy="900 J 1633520213331937 us",
        power="400 W 1633520213331937 us",
        cpu_energy="300 J 1633520213331937 us",
        memory_energy="100 J 1633520213331937 us",
        accel0_energy="450 J 1633520213331937 us",
        power_cap="0 W",
        freshness="77",
    )
    source = CraySource(counters)
    assert source.read()["accel0_energy_j"] == 450
    assert set(source.quantities) == {
        "node_energy_j", "node_power_w", "cpu_energy_j", "memory_energy_j", "accel0_energy_j"
    }  # fmt: skip
    assert (source.meter.counters, source.meter.counter_scope) == (("cpu_energy_j", "memory_energy_j"), "cpu+memory")


def test_cray_with_node_counters_alone_has_node_scope(tmp_path):
    source = CraySource(cray_files(tmp_path, energy="900 J 1 us", power="400 W 1 us"))
    assert (source.meter.counter_scope, source.meter.powers) == ("node", ("node_power_w",))


def grace_meter(root: Path, index: int, label: str, power_uw: int) -> None:
    device = root / f"hwmon{index}" / "device"
    device.mkdir(parents=True)
    (device / "power1_oem_info").write_text(f"{label}\n")
    (device / "power1_average").write_text(str(power_uw))
    (device / "power1_average_interval").write_text("1000")


def test_grace_power_is_summed_over_sockets_and_integrated(tmp_path):
    root = tmp_path / "hwmon"
    grace_meter(root, 1, "Module Power Socket 0", 400_000_000)
    grace_meter(root, 2, "Grace Power Socket 0", 120_000_000)
    grace_meter(root, 3, "Grace Power Socket 1", 80_000_000)
    grace_meter(root, 4, "CPU Power Socket 0", 90_000_000)
    clock = FakeClock()
    source = HwmonSource(root)
    assert source.min_period_s == 1.0
    replay = Replay(tmp_path, clock, [source], device="cpu")
    replay.window("run", 2, 22)
    replay.window("blink", 23, 23.5)
    replay.finish()
    summary = replay.summary("run")
    assert summary.energy_j == pytest.approx(200 * 20)
    assert summary.energy_scope == "grace"
    assert "no joint peak" in summary.reasons["power_peak_w"]
    assert replay.summary("blink").energy_j is None


def test_a_meter_that_is_not_graces_is_not_taken_for_one(tmp_path):
    grace_meter(tmp_path, 1, "Chassis Power", 400_000_000)
    with pytest.raises(SourceUnavailable, match="no power meter of a Grace"):
        HwmonSource(tmp_path)


def test_host_tree_holds_children_and_leaves_out_the_sampler():
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    child, sampler = subprocess.Popen(sleeper), subprocess.Popen(sleeper)
    try:
        tree = descendants(os.getpid(), exclude={sampler.pid})
    finally:
        for process in (child, sampler):
            process.kill()
            process.wait()
    assert os.getpid() in tree and child.pid in tree and sampler.pid not in tree


def test_cpu_time_of_a_child_that_has_ended_is_kept():
    source = HostSource()
    before_s = source.read_at_edge()["cpu_s"]
    burn = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert source.read_at_edge()["cpu_s"] - before_s >= 0.4


def test_a_host_process_that_ended_is_lost():
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    child.stdout.readline()
    source = HostSource(root_pid=child.pid)
    assert source.read()["rss_b"] > 1e6
    child.kill()
    child.wait()
    child.stdout.close()
    with pytest.raises(SourceLost, match="has ended"):
        source.read()


def test_usable_cores_follow_the_affinity():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})
        assert usable_cores(child.pid) <= 1
    finally:
        child.kill()
        child.wait()


STEADY = Trace([(0, 100), (60, 100)])


def two_gpus(second_name: str = "NVIDIA H200") -> FakeNvml:
    gpus = [
        FakeGpu(STEADY, uuid="GPU-aaaa0000-0000-0000-0000-000000000001"),
        FakeGpu(STEADY, uuid="GPU-bbbb0000-0000-0000-0000-000000000002", name=second_name),
    ]
    return FakeNvml(FakeClock(), gpus)


@pytest.mark.parametrize(
    ("listed", "device", "expected"),
    [
        (None, "cuda", "GPU-aaaa"),
        (None, "cuda:1", "GPU-bbbb"),
        ("1", "cuda", "GPU-bbbb"),
        ("1,0", "cuda:1", "GPU-aaaa"),
        ("GPU-bbbb0000-0000-0000-0000-000000000002", "cuda:0", "GPU-bbbb"),
        ("GPU-bb", "cuda:0", "GPU-bbbb"),
        ("MIG-cccc", "cuda", "MIG-cccc"),
    ],
)
def test_cuda_devices_are_matched_to_nvml_by_uuid(listed, device, expected):
    environ = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert visible_uuid(two_gpus(), device, environ).startswith(expected)


@pytest.mark.parametrize(("listed", "device"), [("1", "cuda:1"), ("", "cuda"), ("7,0", "cuda"), ("GPU-", "cuda")])
def test_a_device_that_is_not_visible_is_not_measured(listed, device):
    with pytest.raises(SourceUnavailable, match="is not visible"):
        visible_uuid(two_gpus(), device, {"CUDA_VISIBLE_DEVICES": listed})


def test_indices_into_devices_of_two_models_need_a_stated_order():
    nvml = two_gpus("NVIDIA A100-SXM4-80GB")
    with pytest.raises(SourceUnavailable, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible_uuid(nvml, "cuda", {"CUDA_VISIBLE_DEVICES": "1"})
    ordered = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_uuid(nvml, "cuda", ordered).startswith("GPU-bbbb")


def test_of_two_devices_the_visible_one_is_measured(tmp_path):
    clock = FakeClock()
    gpus = [
        FakeGpu(Trace([(0, 700), (60, 700)]), uuid="GPU-aaaa0000-0000-0000-0000-000000000001"),
        FakeGpu(Trace([(0, 100), (60, 100)]), uuid="GPU-bbbb0000-0000-0000-0000-000000000002"),
    ]
    nvml = FakeNvml(clock, gpus)
    uuid = visible_uuid(nvml, "cuda:0", {"CUDA_VISIBLE_DEVICES": "1"})
    replay = Replay(tmp_path, clock, [NvmlSource(uuid=uuid, nvml=nvml, monotonic_ns=clock.monotonic_ns)])
    replay.window("run", 5, 35)
    replay.finish()
    assert replay.summary("run").energy_j == pytest.approx(100 * 30, rel=0.01)


def test_an_unknown_uuid_is_unavailable_with_nvmls_answer():
    with pytest.raises(SourceUnavailable, match="NVML finds no device GPU-none: Not Found"):
        NvmlSource(uuid="GPU-none", nvml=two_gpus())


class FakeCuda:
    """torch.cuda's memory statistics, moved by hand."""

    def __init__(self):
        self.current = self.peak = 0

    def is_available(self) -> bool:
        return True

    def allocate(self, size: int) -> None:
        self.current += size
        self.peak = max(self.peak, self.current)

    def memory_stats(self, device) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": self.current,
            "allocated_bytes.all.peak": self.peak,
            "reserved_bytes.all.current": self.current + 1_000_000_000,
            "num_alloc_retries": 3,
        }

    def reset_peak_memory_stats(self, device) -> None:
        self.peak = self.current


def test_nested_windows_each_have_the_exact_allocator_peak(tmp_path):
    cuda, clock = FakeCuda(), FakeClock()
    source = TorchAllocatorSource("cuda", torch=SimpleNamespace(cuda=cuda))
    replay = Replay(tmp_path, clock, [source])
    cuda.allocate(40_000_000_000)
    cuda.allocate(-38_000_000_000)
    replay.book.begin("outer")
    # A spike between two samples, which only the allocator itself can have seen.
    cuda.allocate(6_000_000_000)
    cuda.allocate(-6_000_000_000)
    replay.advance_to(1.03)
    replay.book.begin("inner")
    cuda.allocate(3_000_000_000)
    replay.advance_to(2.07)
    replay.book.end("inner")
    replay.advance_to(3.01)
    replay.book.end("outer")
    replay.finish()
    assert replay.summary("inner").allocator_peak_gb == pytest.approx(5)
    assert replay.summary("outer").allocator_peak_gb == pytest.approx(8)
    assert replay.summary("outer").allocator_retries == 0


def test_absent_sources_say_why_and_unknown_names_are_refused():
    null = open_source("torch_allocator", {"device": "cpu"})
    assert null.reason == "torch's caching allocator exists on CUDA devices only"
    assert null.read() == {}
    with pytest.raises(ValueError, match="no telemetry source 'wattmeter'"):
        open_source("wattmeter", {})
    assert set(OPENERS) == {"nvml", "rapl", "hwmon", "cray_pm", "host", "load", "torch_allocator"}


def test_reading_the_host_is_cheap():
    source = HostSource()
    start_s = time.process_time()
    for _ in range(200):
        source.read()
    # 3 % of a core at 10 readings a second is 3 ms for one; this leaves room for a slow machine.
    assert (time.process_time() - start_s) / 200 < 0.003
