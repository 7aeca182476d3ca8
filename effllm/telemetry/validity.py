"""Plausibility rules: what a measured figure may not be if the instrument, the device and the bookkeeping are sound.

Each rule looks at numbers and returns findings. An `error` makes a row invalid; a `warning` is shown beside it. A
figure that is None was not measured, says so elsewhere, and breaks no rule.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from effllm.errors import Status
from effllm.results.telemetry import DeviceInfo, Finding, Severity, TelemetrySummary

# Bits that mean the hardware protected itself, as against running at the limit its owner set.
_PROTECTIVE_THROTTLING = {"hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown"}
_MAX_POWER_OF_LIMIT = 1.05
_MAX_MFU = 0.8
_MAX_ENERGY_DISAGREEMENT = 0.05
_MIN_QUANTIZED_SCORE_SHARE = 0.9
_MAX_THROUGHPUT_DISAGREEMENT = 0.01
# The steps that were not measured may have been a little faster than those that were.
_MAX_SHARE_OF_WALL_TIME = 1.05
DISTURBED = "disturbed"
"""The rule, and how its message begins, for what others did to a measurement."""
MAX_OTHER_CPU = 0.05
"""Share of the usable cores' time that others, processes and the hypervisor's guests, may take."""
# Where half of the cores had nothing to do, what others ran elsewhere: a note, not a verdict.
_ENOUGH_IDLE = 0.5
_MAX_THROTTLED = 0.05
_SHOWN_SHARE = 0.0005
_POWER_WINDOW_S = 30.0
# Sensors are late at both edges of a window, by up to half a second together.
_SENSOR_LAG_S = 0.5


def check_summary(
    summary: TelemetrySummary,
    device: DeviceInfo | None = None,
    min_window_s: float | None = None,
) -> list[Finding]:
    """Rules on a summary from `Telemetry.summary`, with the device that it is of, and the shortest window allowed."""
    return [
        *_check_instrument(summary, min_window_s),
        *_check_power(summary, device.power_limit_w if device else None),
        *_check_energy_agreement(summary),
        *_check_memory(summary),
        *check_disturbance(summary, device),
        *_check_device_state(summary, device),
        *_check_fraction("util_nvml", summary.util_nvml, high=1.0),
        *_check_fraction("util_cpu", summary.util_cpu, high=1.05),
    ]


def _check_instrument(summary: TelemetrySummary, min_window_s: float | None) -> list[Finding]:
    findings = []
    if summary.status != "ok":
        findings.append(Finding("instrument", "error", f"the measurement is invalid: {summary.reason}"))
    shortest_s = summary.duration_s / max(summary.windows, 1)
    if min_window_s is not None and shortest_s < min_window_s:
        message = f"windows last {shortest_s:.3g} s on average, less than the {min_window_s:g} s the protocol asks for"
        findings.append(Finding("window_length", "error", message))
    return findings


def _check_power(summary: TelemetrySummary, limit_w: float | None) -> list[Finding]:
    power_w = summary.power_avg_w
    if power_w is None:
        return []
    if power_w <= 0:
        return [Finding("power", "error", f"power_avg_w is {power_w:.4g} W, not above zero")]
    # The limit recorded is the GPU's own; a module draws more.
    if summary.energy_scope == "gpu" and limit_w is not None and power_w > _MAX_POWER_OF_LIMIT * limit_w:
        message = f"power_avg_w is {power_w:.4g} W, more than {_MAX_POWER_OF_LIMIT} x the limit of {limit_w:.4g} W"
        return [Finding("power", "error", message)]
    return []


def _check_energy_agreement(summary: TelemetrySummary) -> list[Finding]:
    disagreement = summary.energy_disagreement
    if disagreement is None or disagreement <= _MAX_ENERGY_DISAGREEMENT:
        return []
    # Where the sensor's lag alone could explain the difference, it is no evidence against the counter.
    explainable = disagreement * summary.duration_s <= _SENSOR_LAG_S * summary.windows
    message = f"energy counter and integrated power are {disagreement:.1%} apart"
    return [Finding("energy_agreement", "warning" if explainable else "error", message)]


def _check_memory(summary: TelemetrySummary) -> list[Finding]:
    findings = []
    device_gb = "memory_total_gb", summary.memory_total_gb
    host_gb = "memory_host_total_gb", summary.memory_host_total_gb
    for kind, average, peak, (total_key, total) in (
        ("device", summary.memory_device_avg_gb, summary.memory_device_peak_gb, device_gb),
        ("process", summary.memory_process_avg_gb, summary.memory_process_peak_gb, device_gb),
        ("host", summary.memory_host_avg_gb, summary.memory_host_peak_gb, host_gb),
    ):
        # The average interpolates between readings, which costs a rounding error where memory never changed.
        if average is not None and peak is not None and average > peak * (1 + 1e-9):
            message = f"memory_{kind}_avg_gb {average:.4g} exceeds the peak {peak:.4g}"
            findings.append(Finding("memory", "error", message))
        if peak is not None and total is not None and peak > total:
            message = f"memory_{kind}_peak_gb {peak:.4g} exceeds {total_key} {total:.4g}"
            findings.append(Finding("memory", "error", message))
    return findings


def _check_device_state(summary: TelemetrySummary, device: DeviceInfo | None) -> list[Finding]:
    findings = []
    throttled = set(summary.throttle_reasons or ())
    if protective := sorted(throttled & _PROTECTIVE_THROTTLING):
        findings.append(Finding("throttling", "error", f"clocks were throttled: {', '.join(protective)}"))
    if limited := sorted(throttled - _PROTECTIVE_THROTTLING):
        findings.append(Finding("throttling", "warning", f"clocks were limited: {', '.join(limited)}"))
    if device and device.mig:
        findings.append(
            Finding("exclusive_device", "error", "MIG is on: figures of the GPU are shared with other slices")
        )
    return findings


def check_disturbance(summary: TelemetrySummary, device: DeviceInfo | None = None) -> list[Finding]:
    """Whether others took what the workload was to have for itself: its cores, its quota, its GPU."""
    messages: list[tuple[Severity, str]] = []
    foreign = max(summary.foreign_processes or 0, len((device and device.processes) or ()))
    if foreign:
        used = [
            f"{name} {value:.3g}{unit}"
            for name, value, unit in (
                ("memory", summary.foreign_memory_peak_gb, " GB"),
                ("load", summary.foreign_utilization_peak, ""),
            )
            if value is not None
        ]
        shown = f" ({', '.join(used)})" if used else ""
        messages.append(("error", f"{foreign} other processes used the device{shown}"))
    throttled = summary.throttled_fraction
    if throttled is not None and throttled > _MAX_THROTTLED:
        text = f"the CPU quota of the cgroup held the job back for {throttled:.1%} of the time"
        messages.append(("error", f"{text}, more than {_MAX_THROTTLED:.0%}"))
    other, steal, idle = summary.other_cpu_fraction, summary.steal_fraction, summary.idle_cpu_fraction
    if (other or 0) + (steal or 0) > MAX_OTHER_CPU:
        taken = " and ".join(
            f"{what} took {share:.1%}"
            for share, what in ((other, "other processes"), (steal, "the hypervisor's other guests"))
            if share and share >= _SHOWN_SHARE
        )
        severity: Severity = "warning" if (idle or 0) >= _ENOUGH_IDLE else "error"
        messages.append((severity, f"{taken} of the usable cores' time, more than {MAX_OTHER_CPU:.0%}"))
    return [Finding(DISTURBED, severity, f"{DISTURBED}: {message}") for severity, message in messages]


def _check_fraction(name: str, value: float | None, high: float, low: float = 0.0) -> list[Finding]:
    if value is None or low <= value <= high:
        return []
    return [Finding(name, "error", f"{name} is {value:.4g}, outside [{low:g}, {high:g}]")]


def check_short_windows(window_s: float) -> list[Finding]:
    """Sensors of power average over up to a second and update about ten times in one."""
    if window_s >= _POWER_WINDOW_S:
        return []
    message = f"windows of {window_s:.3g} s, short for power figures, which want {_POWER_WINDOW_S:g} s"
    return [Finding("short_windows", "warning", message)]


def check_mfu(mfu: float | None) -> list[Finding]:
    """0 < MFU < 0.8: more has not been seen on dense arithmetic, so FLOPs, time or peak are wrong."""
    if mfu is None or 0 < mfu < _MAX_MFU:
        return []
    return [Finding("mfu", "error", f"mfu is {mfu:.4g}, outside (0, {_MAX_MFU})")]


def check_mbu(mbu: float | None) -> list[Finding]:
    """0 < MBU <= 1: memory does not exceed its peak bandwidth."""
    if mbu is None or 0 < mbu <= 1:
        return []
    return [Finding("mbu", "error", f"mbu is {mbu:.4g}, outside (0, 1]")]


def check_token_count(asked: int, produced: int) -> list[Finding]:
    """Tokens produced = tokens asked for: a run that stops early has another latency and energy per token."""
    if asked == produced:
        return []
    return [Finding("token_count", "error", f"{produced} tokens were produced where {asked} were asked for")]


def check_throughput(tokens_per_s: float, tokens: int, duration_s: float) -> list[Finding]:
    """A reported throughput must be what tokens and wall time give."""
    expected = tokens / duration_s
    if abs(tokens_per_s - expected) <= _MAX_THROUGHPUT_DISAGREEMENT * expected:
        return []
    message = f"throughput is {tokens_per_s:.6g} tokens/s, but {tokens} tokens in {duration_s:.4g} s are {expected:.6g}"
    return [Finding("throughput", "error", message)]


def check_latency(latency_s: float, steps: int, duration_s: float) -> list[Finding]:
    """A reported time per step must be what steps and wall time give."""
    expected_s = duration_s / steps
    if abs(latency_s - expected_s) <= _MAX_THROUGHPUT_DISAGREEMENT * expected_s:
        return []
    message = f"a step takes {latency_s:.6g} s, but {steps} steps in {duration_s:.4g} s are {expected_s:.6g} s each"
    return [Finding("latency", "error", message)]


def check_wall_time(latency_s: float, steps: int, wall_s: float) -> list[Finding]:
    """All steps of a job at the measured time fit into the time that the job took as a whole."""
    if latency_s * steps <= _MAX_SHARE_OF_WALL_TIME * wall_s:
        return []
    message = f"{steps} steps of {latency_s:.6g} s are {latency_s * steps:.6g} s, but the whole job took {wall_s:.6g} s"
    return [Finding("wall_time", "error", message)]


def check_equal(name: str, values: Mapping[str, Any]) -> list[Finding]:
    """Rows that are compared with each other have this in common."""
    if len(set(values.values())) <= 1:
        return []
    listed = ", ".join(f"{row} {value}" for row, value in values.items())
    return [Finding("comparable", "error", f"{name} differs among rows that are compared: {listed}")]


def check_scores(scores: Mapping[str, float | None]) -> list[Finding]:
    """Every benchmark score lies in [0, 1]."""
    return [
        Finding("score", "error", f"score {name} is {score:.4g}, outside [0, 1]")
        for name, score in scores.items()
        if score is not None and not 0 <= score <= 1
    ]


def check_quantized_score(quantized: float | None, base: float | None) -> list[Finding]:
    """A quantised model that keeps less than 0.9 of its base's score is more often broken than compressed."""
    if quantized is None or not base or quantized / base >= _MIN_QUANTIZED_SCORE_SHARE:
        return []
    message = f"the quantised score is {quantized / base:.3f} of the base model's, below {_MIN_QUANTIZED_SCORE_SHARE}"
    return [Finding("quantized_score", "warning", message)]


def check_generation_settings(ignored: Mapping[str, Any]) -> list[Finding]:
    """What a model's files ask of generation is no part of the measurement, and the row says what that was."""
    if not ignored:
        return []
    listed = ", ".join(f"{key} {str(value)[:40]}" for key, value in ignored.items())
    message = f"generation settings in the model's files were ignored: {listed}"
    return [Finding("generation_settings", "warning", message)]


def check_batch(batch_size: int, halvings: int) -> list[Finding]:
    """A batch that memory did not hold was halved: the scores stay, times are those of another batch."""
    if not halvings:
        return []
    message = f"memory ran out, and the batch was halved {halvings} times: {batch_size} requests at once"
    return [Finding("batch", "warning", message)]


def status_of(findings: Iterable[Finding]) -> tuple[Status, str | None]:
    """(status, reason) that findings give a row: "invalid" with the errors joined, or ("ok", None)."""
    errors = [finding for finding in findings if finding.severity == "error"]
    # What others did comes first: it explains the rest.
    errors.sort(key=lambda finding: finding.rule != DISTURBED)
    return ("invalid", "; ".join(finding.message for finding in errors)) if errors else ("ok", None)
