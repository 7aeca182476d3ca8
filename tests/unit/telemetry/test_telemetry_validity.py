"""Plausibility rules: each fires on what it is for, and neither on what is sound nor on what was not measured."""

import pytest

from effllm.results.telemetry import DeviceInfo, TelemetrySummary
from effllm.telemetry import validity

SOUND = {
    "duration_s": 60.0,
    "windows": 2,
    "status": "ok",
    "reason": None,
    "power_avg_w": 500.0,
    "energy_scope": "gpu",
    "energy_disagreement": 0.01,
    "memory_device_avg_gb": 40.0,
    "memory_device_peak_gb": 60.0,
    "memory_total_gb": 141.0,
    "memory_process_avg_gb": 39.0,
    "memory_process_peak_gb": 59.0,
    "memory_host_avg_gb": 3.0,
    "memory_host_peak_gb": 3.0,
    "memory_host_total_gb": 500.0,
    "util_nvml": 0.97,
    "util_cpu": 0.3,
    "throttle_reasons": [],
    "foreign_processes": 0,
    "reasons": {},
}
DEVICE = {
    "device": "cuda:0",
    "kind": "cuda",
    "name": "a GPU",
    "memory_total_gb": 141.0,
    "power_limit_w": 700.0,
    "mig": False,
    "processes": [],
}


def found(device=DEVICE, min_window_s=None, **changes) -> set[tuple[str, str]]:
    summary = TelemetrySummary(**{**SOUND, **changes})
    return {(f.rule, f.severity) for f in validity.check_summary(summary, DeviceInfo(**device), min_window_s)}


def test_a_sound_summary_has_no_finding():
    assert found(min_window_s=30.0) == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "invalid", "reason": "the sampler starved"}, ("instrument", "error")),
        ({"power_avg_w": 0.0}, ("power", "error")),
        ({"power_avg_w": 736.0}, ("power", "error")),
        ({"energy_disagreement": 0.06}, ("energy_agreement", "error")),
        ({"energy_disagreement": 0.06, "windows": 30}, ("energy_agreement", "warning")),
        ({"memory_device_avg_gb": 61.0}, ("memory", "error")),
        ({"memory_device_peak_gb": 142.0}, ("memory", "error")),
        ({"memory_host_peak_gb": 501.0}, ("memory", "error")),
        ({"throttle_reasons": ["hw_slowdown"]}, ("throttling", "error")),
        ({"throttle_reasons": ["sw_power_cap"]}, ("throttling", "warning")),
        ({"foreign_processes": 1}, ("disturbed", "error")),
        ({"util_nvml": 1.2}, ("util_nvml", "error")),
        ({"util_cpu": 1.2}, ("util_cpu", "error")),
    ],
)
def test_each_rule_fires_alone(changes, expected):
    assert found(**changes) == {expected}


def test_what_the_device_tells_counts_too():
    assert found(device={**DEVICE, "mig": True}) == {("exclusive_device", "error")}
    assert found(device={**DEVICE, "processes": [4711]}) == {("disturbed", "error")}
    assert found(min_window_s=31.0) == {("window_length", "error")}


def test_power_at_the_tolerated_limit_and_of_a_module_is_plausible():
    assert found(power_avg_w=735.0) == set()
    assert found(power_avg_w=900.0, energy_scope="module") == set()


def test_what_was_not_measured_breaks_no_rule():
    unmeasured = {key: None for key in SOUND if key not in ("duration_s", "windows", "status", "reasons")}
    assert validity.check_summary(TelemetrySummary(**{**SOUND, **unmeasured})) == []
    assert validity.check_mfu(None) == validity.check_mbu(None) == []
    assert validity.check_quantized_score(None, 0.5) == validity.check_scores({"mmlu": None}) == []


@pytest.mark.parametrize(
    ("findings", "severities"),
    [
        (validity.check_mfu(0.45), []),
        (validity.check_mfu(0.0), ["error"]),
        (validity.check_mfu(0.8), ["error"]),
        (validity.check_mbu(1.0), []),
        (validity.check_mbu(1.01), ["error"]),
        (validity.check_token_count(512, 512), []),
        (validity.check_token_count(512, 511), ["error"]),
        (validity.check_throughput(100.5, 1000, 10.0), []),
        (validity.check_throughput(5000.0, 1000, 10.0), ["error"]),
        (validity.check_scores({"a": 0.0, "b": 1.0}), []),
        (validity.check_scores({"a": 56.0, "b": -0.1}), ["error", "error"]),
        (validity.check_quantized_score(0.45, 0.5), []),
        (validity.check_quantized_score(0.44, 0.5), ["warning"]),
    ],
)
def test_rules_on_single_figures(findings, severities):
    assert [finding.severity for finding in findings] == severities


def test_errors_make_a_row_invalid_with_all_their_reasons_and_warnings_do_not():
    error = validity.Finding("a", "error", "this is off")
    other = validity.Finding("b", "error", "that is off")
    warning = validity.Finding("c", "warning", "look here")
    assert validity.status_of([warning]) == ("ok", None)
    assert validity.status_of([error, warning, other]) == ("invalid", "this is off; that is off")
