"""Table 9: what the precision of a model's weights costs and gains, one row per model and precision."""

import math
from collections.abc import Mapping
from typing import Any

from effllm.tables.artifacts import Result, read_results
from effllm.tables.cells import Row, mean

# Columns taken as they are from a profile's figures.
_LATENCY_COLUMNS = {
    "latency_ms": "latency_ms",
    "first_token_ms_p50": "first_token_ms_p50",
    "first_token_ms_p95": "first_token_ms_p95",
    "token_ms_p50": "token_ms_p50",
    "token_ms_p95": "token_ms_p95",
    "prefill_tokens_per_s": "prefill_tokens_per_s",
    "decode_tokens_per_s": "decode_tokens_per_s",
}
_TELEMETRY_COLUMNS = ("util_nvml", "util_cpu", "power_peak_w", "energy_source", "energy_scope")
_NOT_QUANTIZED = "weights are cast, not quantized"


def table9(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows of Table 9.

    `spec` is `Graph.table_spec("table9")`; `inputs` are paths of manifests by stage. The paper's columns come
    first, in its order; docs/tables.md says what each column is.
    """
    results = {stage: read_results(stage, paths) for stage, paths in inputs.items()}
    config = spec["config"]
    rows = []
    for model in config["models"]:
        baseline = _Variant(f"{model}.{config['baseline']}", config["benchmarks"], results)
        for precision in config["precisions"]:
            variant = _Variant(f"{model}.{precision}", config["benchmarks"], results)
            rows.append(_row(spec, model, precision, variant, baseline))
    return rows


class _Variant:
    """The artifacts of one row."""

    def __init__(self, id: str, benchmarks: list[str], results: Mapping[str, Mapping[str, Result]]):
        self.quantize = results["quantize"][id]
        self.profile = results["profile"][id]
        self.scores = {benchmark: results["evaluate"][f"{id}.{benchmark}"] for benchmark in benchmarks}

    @property
    def nominal_bits(self) -> int:
        precision = self.quantize.manifest.spec["config"]["precision"]
        return precision.get("bits", 16)

    def performance(self) -> tuple[float | None, float | None, str | None]:
        """Mean score over the accuracy benchmarks, its standard error, and why not if None."""
        failed = [f"{id} is {result.status}" for id, result in self.scores.items() if result.content is None]
        if failed:
            return None, None, ", ".join(failed)
        accuracies = [result.content for result in self.scores.values() if result.content["role"] == "accuracy"]
        if not accuracies:
            return None, None, "the table has no accuracy benchmark"
        errors = [content["stderr"] for content in accuracies]
        # Benchmarks are independent samples, so the variance of the mean is the mean variance over their number.
        error = None if None in errors else math.sqrt(math.fsum(e * e for e in errors)) / len(errors)
        return mean([content["score"] for content in accuracies]), error, None

    def first_failure(self) -> Result | None:
        return next((r for r in (self.quantize, self.profile, *self.scores.values()) if r.status != "ok"), None)


def _row(spec: Mapping[str, Any], model: str, precision: str, variant: _Variant, baseline: _Variant) -> dict[str, Any]:
    row = Row()
    row.set("model", spec["model_labels"][model])
    row.set("precision", precision)
    performance, error, why = variant.performance()
    row.set("average_performance", performance, why)
    row.set("AL_sum_ms", *_latency_sum(variant))
    profile = variant.profile.content
    no_profile = f"profile is {variant.profile.status}"
    figures = profile["figures"] if profile else {}
    telemetry = profile["telemetry"]["inference"] if profile else {}
    reasons = telemetry.get("reasons", {})
    scope, memory = _memory(telemetry)
    row.set("IT_tokens_per_s", figures.get("throughput_tokens_per_s"), no_profile)
    row.set("AMU_GB", telemetry.get(f"memory_{memory}_avg_gb"), reasons.get(f"memory_{memory}_avg_gb", no_profile))
    row.set("AEC_W", telemetry.get("power_avg_w"), reasons.get("power_avg_w", no_profile))
    compression = _compression(variant, baseline)
    row.set("MCR", *compression["nominal"])
    half = 1.96 * error if error is not None else None
    why = why or "a benchmark has no standard error"
    row.set("average_performance_low", performance - half if half is not None else None, why)
    row.set("average_performance_high", performance + half if half is not None else None, why)
    for column, figure in _LATENCY_COLUMNS.items():
        row.set(column, figures.get(figure), no_profile)
    for column, figure in (("latency_ms", "latency_ms_ci95"), ("IT_tokens_per_s", "throughput_tokens_per_s_ci95")):
        low, high = figures.get(figure, (None, None))
        row.set(f"{column}_low", low, no_profile)
        row.set(f"{column}_high", high, no_profile)
    row.set("AMU_scope", scope, no_profile)
    peak = f"memory_{memory}_peak_gb"
    row.set("memory_peak_GB", telemetry.get(peak), reasons.get(peak, no_profile))
    row.set("AMU_fraction", *_memory_fraction(telemetry, memory, no_profile))
    for column in _TELEMETRY_COLUMNS:
        row.set(column, telemetry.get(column), reasons.get(column, no_profile))
    row.set("energy_J_per_token", *_energy_per_token(telemetry, figures, reasons, no_profile))
    row.set("mcr_nominal", *compression["nominal"])
    row.set("mcr_measured", *compression["measured"])
    _set_weights(row, variant)
    _set_scores(row, variant)
    row.set("device", profile["device"]["name"] if profile else None, no_profile)
    row.set("threads", profile["threads"] if profile else None, no_profile)
    row.set("repeats", profile["protocol"]["repeats"] if profile else None, no_profile)
    row.set("window_s", telemetry.get("duration_s"), no_profile)
    return row.finish(*_status(variant))


def _status(variant: _Variant) -> tuple[str, str | None]:
    failure = variant.first_failure()
    if failure:
        return failure.status, f"{failure.manifest.stage}: {failure.reason}"
    telemetry = variant.profile.content["telemetry"]["inference"]
    return telemetry["status"], telemetry["reason"]


def _latency_sum(variant: _Variant) -> tuple[float | None, str | None]:
    """The paper's AL: mean time of a request, summed over the benchmarks."""
    failed = [id for id, result in variant.scores.items() if result.content is None]
    if failed:
        return None, f"{', '.join(failed)} was not scored"
    return math.fsum(result.content["cost"]["latency_mean_ms"] for result in variant.scores.values()), None


def _memory(telemetry: Mapping[str, Any]) -> tuple[str | None, str]:
    """Which memory AMU speaks of: the accelerator's, or without one the process tree's on the host."""
    if not telemetry:
        return None, "device"
    if telemetry["memory_device_avg_gb"] is not None:
        return "device", "device"
    return "host process tree", "host"


def _memory_fraction(telemetry: Mapping[str, Any], memory: str, no_profile: str) -> tuple[float | None, str | None]:
    total = telemetry.get("memory_total_gb" if memory == "device" else "memory_host_total_gb")
    used = telemetry.get(f"memory_{memory}_avg_gb")
    if used is None or total is None:
        return None, telemetry.get("reasons", {}).get(f"memory_{memory}_avg_gb", no_profile)
    return used / total, None


def _energy_per_token(
    telemetry: Mapping[str, Any], figures: Mapping[str, Any], reasons: Mapping[str, str], no_profile: str
) -> tuple[float | None, str | None]:
    energy = telemetry.get("energy_j")
    return (
        (energy / figures["generated_tokens"], None)
        if energy is not None
        else (
            None,
            reasons.get("energy_j", no_profile),
        )
    )


def _compression(variant: _Variant, baseline: _Variant) -> dict[str, tuple[float | None, str | None]]:
    """MCR (Eq 9): ratio of sizes times ratio of performances, by nominal bits and by bytes on disk."""
    performance, _, why = variant.performance()
    original, _, why_original = baseline.performance()
    if performance is None or not original:
        reason = why or why_original or "the baseline's performance is 0"
        return {"nominal": (None, reason), "measured": (None, reason)}
    ratio = performance / original
    measured = baseline.quantize.content["weights"]["bytes"] / variant.quantize.content["weights"]["bytes"]
    return {
        "nominal": (baseline.nominal_bits / variant.nominal_bits * ratio, None),
        "measured": (measured * ratio, None),
    }


def _set_weights(row: Row, variant: _Variant) -> None:
    content = variant.quantize.content
    reason = f"quantize is {variant.quantize.status}"
    weights = content["weights"] if content else {}
    row.set("weight_bytes", weights.get("bytes"), reason)
    packed, original = weights.get("quantized_layers_bytes"), weights.get("quantized_layers_bytes_16_bit")
    row.set("quantized_layers_bytes", packed, _NOT_QUANTIZED if content else reason)
    ratio = original / packed if packed else None
    row.set("quantized_layers_compression", ratio, _NOT_QUANTIZED if content else reason)
    precision = variant.quantize.manifest.spec["config"]["precision"]
    for key in ("bits", "group_size", "act_order", "damping"):
        row.set(key, precision.get(key), _NOT_QUANTIZED)
    calibration = precision.get("calibration")
    text = "{samples} x {sequence_length} tokens of {corpus}".format(**calibration) if calibration else None
    row.set("calibration", text, _NOT_QUANTIZED)


def _set_scores(row: Row, variant: _Variant) -> None:
    for benchmark, result in variant.scores.items():
        content, reason = result.content, f"evaluate is {result.status}: {result.reason}"
        interval = (content["ci95"] if content else None) or (None, None)
        row.set(f"{benchmark}_score", content["score"] if content else None, reason)
        row.set(f"{benchmark}_low", interval[0], "lm-eval gives no standard error" if content else reason)
        row.set(f"{benchmark}_high", interval[1], "lm-eval gives no standard error" if content else reason)
        row.set(f"{benchmark}_chance", content["chance_level"] if content else None, reason)
