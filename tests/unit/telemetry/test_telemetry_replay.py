"""Replayed sensor traces: figures must match what the trace is known to hold, whatever the sensors do."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_nvml import FakeClock, FakeGpu, FakeNvml, Trace
from replay import Replay

from effllm.telemetry.sources.nvml import NvmlSource
from effllm.telemetry.validity import check_summary

# Idle, a ramp to full power, a plateau, a shorter burst, idle again: 50 s.
BURSTS = Trace(
    [(0, 90), (10, 90), (12, 640), (25, 640), (26, 120), (32, 120), (33, 500), (36, 500), (37, 90), (50, 90)]
)


def stalls_while_busy(t: float) -> float:
    """Lateness of a sample due at `t`: a busy machine makes samples of the busy stretch rarer and irregular."""
    return 0.17 + 0.1 * np.sin(37 * t) if 11 <= t < 26 else 0.02 * (1 + np.sin(91 * t))


def replay_of(tmp_path: Path, gpu: FakeGpu, **options) -> Replay:
    clock = FakeClock()
    nvml = FakeNvml(clock, [gpu])
    return Replay(tmp_path, clock, [NvmlSource(uuid=gpu.uuid, nvml=nvml, monotonic_ns=clock.monotonic_ns)], **options)


def measured(tmp_path: Path, gpu: FakeGpu, start: float = 5, end: float = 45, **options) -> dict:
    replay = replay_of(tmp_path, gpu, **options)
    replay.window("run", start, end)
    replay.advance_to(end + 0.5)
    replay.finish()
    return replay.summary("run")


def test_energy_and_average_power_match_the_trace_under_irregular_sampling(tmp_path):
    summary = measured(tmp_path, FakeGpu(BURSTS), delay_s=stalls_while_busy)
    truth_j = BURSTS.energy_j(5, 45)
    assert summary.energy_j == pytest.approx(truth_j, rel=0.01)
    assert summary.energy_cross_check_j == pytest.approx(truth_j, rel=0.01)
    assert summary.power_avg_w == pytest.approx(truth_j / 40, rel=0.01)
    assert summary.power_peak_w == pytest.approx(640, rel=0.01)
    assert (summary.energy_scope, summary.status) == ("gpu", "ok")
    assert summary.energy_disagreement < 0.01


def test_equal_weight_mean_of_the_same_samples_misses_the_same_truth(tmp_path):
    replay = replay_of(tmp_path, FakeGpu(BURSTS), delay_s=stalls_while_busy)
    replay.window("run", 5, 45)
    times, watts = replay.finish().series("nvml", "power_instant_w")
    start_s = replay.book.closed[0].start_ns / 1e9
    naive_w = watts[(times >= start_s) & (times <= start_s + 40)].mean()
    truth_w = BURSTS.energy_j(5, 45) / 40
    assert naive_w != pytest.approx(truth_w, rel=0.01)
    assert replay.summary("run").power_avg_w == pytest.approx(truth_w, rel=0.01)


def test_repeats_of_a_slow_sensor_are_dropped_without_changing_the_integral(tmp_path):
    plateau = Trace([(0, 100), (10, 100), (10.1, 400), (20, 400), (20.1, 100), (30, 100)])
    gpu = FakeGpu(plateau, sensor_period_s=0.5)
    replay = replay_of(tmp_path, gpu, period_s=0.02)
    replay.window("run", 2, 28)
    replay.finish()
    table = pq.read_table(tmp_path / "samples.parquet", filters=[("quantity", "=", "power_instant_w")])
    assert replay.readings_taken > 1300
    assert table.num_rows < 40
    assert replay.summary("run").energy_cross_check_j == pytest.approx(plateau.energy_j(2, 28), rel=0.01)


def test_a_step_of_the_wall_clock_changes_no_figure(tmp_path):
    def run(directory: Path, step_ns: int) -> dict:
        directory.mkdir()
        replay = replay_of(directory, FakeGpu(BURSTS))
        replay.advance_to(5)
        replay.book.begin("run")
        replay.advance_to(20)
        replay.clock.wall_offset_ns += step_ns
        replay.advance_to(45)
        replay.book.end("run")
        replay.finish()
        return replay.summary("run")

    assert run(tmp_path / "stepped", -3_600_000_000_000) == run(tmp_path / "steady", 0)


def test_a_reset_counter_gives_way_to_the_integral_of_power_and_says_so(tmp_path):
    summary = measured(tmp_path, FakeGpu(BURSTS, counter_reset_at_s=22))
    assert summary.energy_j == pytest.approx(BURSTS.energy_j(5, 45), rel=0.01)
    assert summary.energy_source == "nvml: integral of power_instant_w"
    assert summary.energy_cross_check_j is None
    assert "was reset" in summary.reasons["energy_cross_check_j"]


def test_a_reset_is_seen_even_when_the_counter_ends_above_where_the_window_began(tmp_path):
    # Reset early, the counter has long passed its first value by the end: the edges alone look plausible.
    gpu = FakeGpu(Trace([(0, 500), (50, 500)]), counter_reset_at_s=6)
    gpu.counter_trace = Trace([(0, 500), (6, 500), (6.1, 2000), (50, 2000)])
    summary = measured(tmp_path, gpu)
    assert "integral" in summary.energy_source
    assert summary.energy_j == pytest.approx(500 * 40, rel=0.01)


def test_the_averaged_power_stands_in_where_there_is_neither_counter_nor_instant_power(tmp_path):
    missing = frozenset({"scope1", "scope2", "field186", "nvmlDeviceGetTotalEnergyConsumption"})
    summary = measured(tmp_path, FakeGpu(BURSTS, missing=missing))
    assert summary.energy_j == pytest.approx(BURSTS.energy_j(5, 45), rel=0.01)
    assert summary.energy_source == "nvml: integral of power_average_w"
    assert "no energy counter" in summary.reasons["energy_cross_check_j"]


def test_older_devices_without_power_fields_use_the_older_call(tmp_path):
    gpu = FakeGpu(BURSTS, name="Tesla V100-SXM2-32GB", missing=frozenset({"nvmlDeviceGetFieldValues"}))
    summary = measured(tmp_path, gpu)
    assert summary.energy_cross_check_j == pytest.approx(BURSTS.energy_j(5, 45), rel=0.01)


def test_a_device_that_answers_only_for_the_module_has_module_scope(tmp_path):
    module = Trace([(0, 300), (50, 300)])
    gpu = FakeGpu(module, missing=frozenset({"scope0", "scope2"}), module_trace=module)
    summary = measured(tmp_path, gpu)
    assert summary.energy_scope == "module"
    assert summary.energy_cross_check_j == pytest.approx(300 * 40, rel=0.01)


def test_a_superchip_counts_its_module_and_is_checked_against_module_power(tmp_path):
    module = Trace([(t, w + 150) for t, w in zip(BURSTS.times, BURSTS.powers, strict=True)])
    gpu = FakeGpu(
        BURSTS, name="NVIDIA GH200 480GB", missing=frozenset({"scope2"}), module_trace=module, counter_trace=module
    )
    summary = measured(tmp_path, gpu)
    assert summary.energy_scope == "module"
    assert summary.energy_j == pytest.approx(module.energy_j(5, 45), rel=0.01)
    assert summary.energy_disagreement < 0.01


def test_energies_of_differing_scope_are_not_compared(tmp_path):
    gpu = FakeGpu(BURSTS, name="NVIDIA GH200 480GB", counter_trace=Trace([(0, 900), (50, 900)]))
    summary = measured(tmp_path, gpu)
    assert summary.energy_disagreement is None
    assert "counts energy of the module but reports power of the gpu" in summary.reasons["energy_cross_check_j"]


def test_a_counter_that_disagrees_with_power_is_flagged(tmp_path):
    gpu = FakeGpu(BURSTS, counter_trace=Trace([(t, 1.3 * w) for t, w in zip(BURSTS.times, BURSTS.powers, strict=True)]))
    summary = measured(tmp_path, gpu)
    assert summary.energy_disagreement == pytest.approx(0.3 / 1.3, rel=0.03)
    assert ("energy_agreement", "error") in {(f.rule, f.severity) for f in check_summary(summary)}


def test_a_missing_field_leaves_its_figure_none_with_the_devices_answer(tmp_path):
    missing = frozenset({"scope1", "scope2", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetCurrentClocksEventReasons"})
    summary = measured(tmp_path, FakeGpu(BURSTS, missing=missing))
    assert summary.util_nvml is None and summary.throttle_reasons is None
    assert summary.reasons["util_nvml"] == "NVML answers: Not Supported"
    assert summary.energy_j is not None


def test_a_field_that_fails_for_a_stretch_is_not_bridged_by_interpolation(tmp_path):
    summary = measured(tmp_path, FakeGpu(BURSTS, failing_s=(15, 25)))
    assert summary.memory_device_avg_gb is None
    assert "could not be read for 10 s of 40 s" in summary.reasons["memory_device_avg_gb"]


def test_a_device_that_disappears_invalidates_its_window_and_not_the_one_before(tmp_path):
    replay = replay_of(tmp_path, FakeGpu(BURSTS, lost_at_s=20))
    replay.window("before", 5, 15)
    replay.window("during", 16, 40)
    replay.finish()
    assert replay.summary("before").status == "ok"
    lost = replay.summary("during")
    assert lost.status == "invalid" and "GPU is lost" in lost.reason
    assert lost.energy_j is None


def test_a_throttle_event_shows_in_the_windows_it_falls_in_only(tmp_path):
    replay = replay_of(tmp_path, FakeGpu(BURSTS, throttled=[(22, 24, 0x40), (0, 50, 0x1)]))
    replay.window("hot", 15, 30)
    replay.window("cool", 31, 45)
    replay.finish()
    hot, cool = replay.summary("hot"), replay.summary("cool")
    assert hot.throttle_reasons == ["hw_thermal_slowdown"] and cool.throttle_reasons == []
    assert hot.throttle_fractions == {"hw_thermal_slowdown": pytest.approx(2 / 15, rel=0.1)}
    assert [f.severity for f in check_summary(hot) if f.rule == "throttling"] == ["error"]
    assert [f for f in check_summary(cool) if f.rule == "throttling"] == []


def test_overlapping_windows_each_get_their_own_energy(tmp_path):
    replay = replay_of(tmp_path, FakeGpu(BURSTS), delay_s=stalls_while_busy)
    for t, action, name in ((5, "begin", "a"), (18, "begin", "b"), (30, "end", "a"), (44, "end", "b")):
        replay.advance_to(t)
        getattr(replay.book, action)(name)
    replay.finish()
    assert replay.summary("a").energy_j == pytest.approx(BURSTS.energy_j(5, 30), rel=0.01)
    assert replay.summary("b").energy_j == pytest.approx(BURSTS.energy_j(18, 44), rel=0.01)


def test_time_and_energy_of_a_pause_are_left_out(tmp_path):
    replay = replay_of(tmp_path, FakeGpu(BURSTS))
    for t, action in ((11, "begin"), (24, "pause"), (33, "resume"), (36, "end")):
        replay.advance_to(t)
        getattr(replay.book, action)("train")
    replay.finish()
    summary = replay.summary("train")
    truth_j = BURSTS.energy_j(11, 24) + BURSTS.energy_j(33, 36)
    assert summary.duration_s == pytest.approx(16)
    assert summary.energy_j == pytest.approx(truth_j, rel=0.01)
    assert summary.energy_cross_check_j == pytest.approx(truth_j, rel=0.01)


def test_windows_of_one_name_are_merged_by_time_not_by_count(tmp_path):
    replay = replay_of(tmp_path, FakeGpu(BURSTS, memory_b=lambda t: 20e9 if t > 12 else 60e9))
    replay.window("step", 2, 4)
    replay.window("step", 14, 22)
    replay.finish()
    summary = replay.summary("step")
    assert (summary.windows, summary.duration_s) == (2, pytest.approx(10))
    assert summary.memory_device_avg_gb == pytest.approx((2 * 60 + 8 * 20) / 10)
    assert summary.memory_device_peak_gb == pytest.approx(60)
    assert summary.memory_avg_fraction == pytest.approx(28e9 / (143771 * 2**20))


def test_a_window_shorter_than_the_period_has_memory_and_no_invented_energy(tmp_path):
    summary = measured(tmp_path, FakeGpu(BURSTS), start=20.01, end=20.05)
    assert summary.memory_device_avg_gb == pytest.approx(10)
    assert summary.energy_j is None
    assert "updates every 0.1 s: they must last 1 s or more" in summary.reasons["energy_j"]
    assert summary.power_peak_w is None and summary.util_nvml is None
    assert summary.status == "ok"


def test_a_starved_sampler_invalidates_the_window(tmp_path):
    summary = measured(tmp_path, FakeGpu(BURSTS), delay_s=lambda t: 6.0 if 20 < t < 20.2 else 0.0)
    assert summary.status == "invalid"
    assert "the sampler starved: nvml was not read for" in summary.reason


def test_one_late_sample_in_a_long_window_does_not_invalidate_it(tmp_path):
    summary = measured(tmp_path, FakeGpu(BURSTS), delay_s=lambda t: 0.5 if 20 < t < 20.2 else 0.0)
    assert summary.status == "ok"


def test_samples_that_were_missed_are_not_made_up_for_in_a_bunch(tmp_path):
    replay = replay_of(tmp_path, FakeGpu(BURSTS), delay_s=lambda t: 6.0 if 3.95 < t < 4.05 else 0.0)
    replay.advance_to(20)
    # One each 0.1 s but for the 6 s that were missed, and the first.
    assert replay.readings_taken == pytest.approx((20 - 6) / 0.1 + 1, abs=2)


def test_memory_of_own_processes_and_foreign_ones_are_told_apart(tmp_path):
    gpu = FakeGpu(BURSTS, processes=[(os.getpid(), 7_000_000_000), (2**22 + 1, 1_000_000_000)])
    summary = measured(tmp_path, gpu)
    assert summary.memory_process_avg_gb == pytest.approx(7)
    assert summary.foreign_processes == 1
    assert summary.foreign_memory_peak_gb == pytest.approx(1)
    assert summary.foreign_utilization_peak == 0
    assert "disturbed" in {finding.rule for finding in check_summary(summary)}


def test_load_of_foreign_processes_on_the_device_is_told_apart_from_ours(tmp_path):
    others = (2**22 + 1, 2**22 + 2)
    processes = [(pid, 1_000_000_000) for pid in (os.getpid(), *others)]
    load = {os.getpid(): 60, others[0]: 20, others[1]: 15}
    summary = measured(tmp_path, FakeGpu(BURSTS, processes=processes, process_load=load))
    assert summary.foreign_utilization_peak == pytest.approx(0.35)
    refusing = FakeGpu(BURSTS, processes=processes, missing=frozenset({"nvmlDeviceGetProcessUtilization"}))
    (tmp_path / "refusing").mkdir()
    summary = measured(tmp_path / "refusing", refusing)
    assert summary.foreign_utilization_peak is None
    assert "Not Supported" in summary.reasons["foreign_utilization_peak"]
    assert summary.foreign_processes == 2


def test_processes_hidden_by_a_pid_namespace_are_unknown_rather_than_foreign(tmp_path):
    summary = measured(tmp_path, FakeGpu(BURSTS, processes=[(2**22 + 1, 5_000_000_000)]))
    assert summary.memory_process_avg_gb is None and summary.foreign_processes is None


def test_a_mig_slice_has_memory_and_no_energy_of_the_whole_device(tmp_path):
    gpu = FakeGpu(BURSTS, uuid="MIG-bbbb0000-0000-0000-0000-000000000002")
    summary = measured(tmp_path, gpu)
    assert summary.memory_device_avg_gb == pytest.approx(10)
    assert summary.energy_j is None and "MIG" in summary.reasons["energy_j"]
