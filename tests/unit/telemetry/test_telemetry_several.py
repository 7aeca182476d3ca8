"""Two pretended GPUs of one job: their figures together, and each one's own."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fake_nvml import FakeClock, FakeGpu, FakeNvml, Trace
from replay import Replay

from effllm.results.telemetry import TelemetrySummary
from effllm.telemetry.sources import open_source
from effllm.telemetry.sources.nvml import NvmlSource
from effllm.telemetry.sources.several import SeveralDevices
from effllm.telemetry.validity import check_summary

BUSY, IDLE = Trace([(0, 600), (50, 600)]), Trace([(0, 100), (20, 100), (21, 300), (50, 300)])
SECOND = "GPU-bbbb0000-0000-0000-0000-000000000002"
GPUS = [
    FakeGpu(BUSY, memory_b=lambda t: 50e9, utilization=lambda t: 90, processes=[(os.getpid(), 49_000_000_000)]),
    FakeGpu(
        IDLE, uuid=SECOND, memory_b=lambda t: 30e9 + 1e8 * t, utilization=lambda t: 30, throttled=[(20, 30, 0x8)],
        processes=[(os.getpid(), 29_000_000_000), (2**22 + 1, 1_000_000_000)],
    ),
]  # fmt: skip


def measured(tmp_path: Path, gpus: Sequence[FakeGpu]) -> TelemetrySummary:
    clock = FakeClock()
    nvml = FakeNvml(clock, gpus)
    parts = [NvmlSource(uuid=gpu.uuid, nvml=nvml, monotonic_ns=clock.monotonic_ns) for gpu in gpus]
    replay = Replay(tmp_path, clock, [SeveralDevices(parts)], devices=len(gpus))
    replay.window("run", 5, 45)
    replay.advance_to(45.5)
    replay.finish()
    return replay.summary("run")


def test_figures_of_two_devices_are_sums_with_each_ones_own_beside_them(tmp_path):
    summary = measured(tmp_path, GPUS)
    truths_j = [gpu.trace.energy_j(5, 45) for gpu in GPUS]
    assert summary.energy_j == pytest.approx(sum(truths_j), rel=0.01)
    assert summary.energy_cross_check_j == pytest.approx(sum(truths_j), rel=0.01)
    assert summary.power_avg_w == pytest.approx(sum(truths_j) / 40, rel=0.01)
    # At the same time: 600 W and 300 W.
    assert summary.power_peak_w == pytest.approx(900, rel=0.01)
    assert summary.memory_device_avg_gb == pytest.approx(50 + 32.5, rel=0.01)
    assert summary.memory_process_peak_gb == pytest.approx(78)
    assert summary.memory_avg_fraction == pytest.approx(82.5e9 / (summary.memory_total_gb * 1e9), rel=0.01)
    assert summary.util_nvml == pytest.approx(0.6)
    assert summary.throttle_reasons == ["hw_slowdown"]
    assert summary.foreign_processes == 1
    assert [share.energy_j for share in summary.devices] == pytest.approx(truths_j, rel=0.01)
    assert [share.power_avg_w for share in summary.devices] == pytest.approx([j / 40 for j in truths_j], rel=0.01)
    assert [share.memory_device_peak_gb for share in summary.devices] == pytest.approx([50, 34.5], rel=0.01)
    assert [share.util_nvml for share in summary.devices] == pytest.approx([0.9, 0.3])
    assert {"throttling", "disturbed"} <= {finding.rule for finding in check_summary(summary)}


def test_the_counter_of_one_device_that_is_reset_is_seen(tmp_path):
    summary = measured(tmp_path, [GPUS[0], replace(GPUS[1], counter_reset_at_s=30)])
    assert summary.energy_source.startswith("nvml: integral of power_instant_w@0")
    assert summary.energy_j == pytest.approx(sum(gpu.trace.energy_j(5, 45) for gpu in GPUS), rel=0.01)


def test_what_one_device_does_not_offer_is_null_with_its_answer(tmp_path):
    refusing = replace(GPUS[1], missing=GPUS[1].missing | {"nvmlDeviceGetTotalEnergyConsumption"})
    summary = measured(tmp_path, [GPUS[0], refusing])
    # Power is what both have.
    assert summary.energy_source == "nvml: integral of power_instant_w@0 + power_instant_w@1"
    blind = replace(
        GPUS[1], missing=GPUS[1].missing | {"nvmlDeviceGetTotalEnergyConsumption", "scope0", "nvmlDeviceGetPowerUsage"}
    )
    other = tmp_path / "other"
    other.mkdir()
    summary = measured(other, [GPUS[0], blind])
    assert summary.energy_j is None
    assert "NVML answers" in summary.reasons["energy_j"]
    assert summary.devices[0].energy_j is None
    assert summary.memory_device_avg_gb == pytest.approx(82.5, rel=0.01)


def test_one_device_has_no_shares(tmp_path):
    clock = FakeClock()
    source = NvmlSource(uuid=GPUS[0].uuid, nvml=FakeNvml(clock, GPUS), monotonic_ns=clock.monotonic_ns)
    replay = Replay(tmp_path, clock, [source])
    replay.window("run", 5, 15)
    replay.finish()
    assert "devices" not in replay.summary("run").model_fields_set


def test_peaks_of_the_allocators_add_up():
    class Cuda:
        def is_available(self):
            return True

        def memory_stats(self, device):
            held = {"cuda:0": 40, "cuda:1": 30}[device]
            return {
                "allocated_bytes.all.current": held,
                "reserved_bytes.all.current": held + 1,
                "allocated_bytes.all.peak": held + 5,
                "num_alloc_retries": 1,
            }

        def reset_peak_memory_stats(self, device):
            pass

    from effllm.telemetry.sources.allocator import TorchAllocatorSource

    torch = type("Torch", (), {"cuda": Cuda()})
    several = SeveralDevices([TorchAllocatorSource(device, torch) for device in ("cuda:0", "cuda:1")])
    values = several.read_at_edge()
    assert values["allocated_peak_b"] == 80
    assert values["allocated_peak_b@1"] == 35
    assert values["retries"] == 2
    # Without a GPU each of them says why it is not there.
    assert open_source("torch_allocator", {"device": ["cuda:0", "cuda:1"]}).name == "torch_allocator"
