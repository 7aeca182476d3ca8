"""Table 9: what the precision of a model's weights costs and gains, one row per model and precision."""

import math
from collections.abc import Mapping
from typing import Any

from effllm.quantization import read_precision, setting_columns
from effllm.quantization.precision import Calibration, Precision
from effllm.results.evaluation import Divergence, Evaluation
from effllm.results.overlap import ItemsOverlap
from effllm.results.profile import Profile
from effllm.results.quantization import Quantization
from effllm.tables.accuracy import Performance, average_performance, better
from effllm.tables.artifacts import Result, read_results
from effllm.tables.cells import Cell, Row
from effllm.tables.conditions import device_id, software
from effllm.tables.window import Window, disturbances
from effllm.telemetry.metrics import model_compression_rate
from effllm.telemetry.validity import check_batch, check_generation_settings, status_of

# Columns taken as they are from a workload's figures.
_LATENCY_COLUMNS = (
    "latency_ms",
    "first_token_ms_p50",
    "first_token_ms_p95",
    "token_ms_p50",
    "token_ms_p95",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
)
_TELEMETRY_COLUMNS = ("util_nvml", "util_cpu", "power_peak_w", "energy_source", "energy_scope")
# Of a workload whose prompts have images.
_VISION_COLUMNS = {
    "image_tokens": "image_tokens",
    "vision_encode_ms_p50": "encode_ms_p50",
    "language_first_token_ms_p50": "language_first_token_ms_p50",
    "energy_J_per_image": "energy_j_per_image",
}
_ENERGY_COLUMNS = {
    "energy_J_per_token": "energy_j_per_token",
    "energy_above_idle_J_per_token": "energy_above_idle_j_per_token",
    "decode_energy_J_per_token": "decode_energy_j_per_token",
}


def table9(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows of Table 9.

    `spec` is `Graph.table_spec("table9")`; `inputs` are paths of manifests by stage. The paper's columns come
    first, in its order; docs/tables.md says what each column is.
    """
    results = {stage: read_results(stage, paths) for stage, paths in inputs.items()}
    config = spec["config"]
    compared = _compared(config["benchmarks"], results.get("evaluate", {}))
    rows = []
    for model in config["models"]:
        corpus = spec["corpora"].get(model)
        baseline = _Variant(f"{model}.{config['baseline']}", config["benchmarks"], results, corpus)
        for precision in config["precisions"]:
            variant = _Variant(f"{model}.{precision}", config["benchmarks"], results, corpus)
            rows.append(_row(spec, model, precision, variant, baseline, compared))
    return rows


class _Variant:
    """The artifacts of one row."""

    def __init__(
        self, id: str, benchmarks: list[str], results: Mapping[str, Mapping[str, Result[Any]]], corpus: str | None
    ):
        self.quantize: Result[Quantization] = results["quantize"][id]
        self.profile: Result[Profile] = results["profile"][id]
        # A table without benchmarks has no evaluations.
        self.scores: dict[str, Result[Evaluation]] = {
            benchmark: results["evaluate"][f"{id}.{benchmark}"] for benchmark in benchmarks
        }
        # Of a model that the study did not train there is nothing to compare with.
        self.overlaps: list[Result[ItemsOverlap]] = [
            results["overlap"][f"{benchmark}.{corpus}"] for benchmark in benchmarks if corpus
        ]

    @property
    def precision(self) -> Precision:
        return read_precision(self.quantize.manifest.spec["config"]["precision"])

    @property
    def unscored(self) -> str | None:
        """Why no score of these weights would mean anything; None where one would."""
        return self.quantize.content.unscored if self.quantize.content else None

    def performance(self) -> Performance:
        if self.unscored and not self.scores:
            return Performance(None, self.unscored)
        return average_performance(self.scores)

    def workloads(self) -> list[str]:
        return list(self._workloads)

    def has_images(self, workload: str) -> bool:
        return bool(self._workloads[workload].get("images"))

    @property
    def _workloads(self) -> Mapping[str, Any]:
        workloads: Mapping[str, Any] = self.profile.manifest.spec["config"]["workloads"]
        return workloads

    def warnings(self) -> list[str]:
        """What its evaluations say of themselves, and of which items training text has."""
        contents = [result.content for result in self.scores.values() if result.content]
        findings = [check_generation_settings(content.ignored_generation_settings) for content in contents]
        findings += [check_batch(content.cost.batch_size, content.cost.batch_halvings) for content in contents]
        findings += [overlap.content.findings() for overlap in self.overlaps if overlap.content]
        return [finding.message for found in findings for finding in found]

    def first_failure(self) -> Result[Any] | None:
        results: list[Result[Any]] = [self.quantize, self.profile, *self.scores.values()]
        return next((result for result in results if result.status != "ok"), None)


def _row(
    spec: Mapping[str, Any], model: str, precision: str, variant: _Variant, baseline: _Variant, compared: list[str]
) -> dict[str, Any]:
    row = Row()
    row.set("model", spec["model_labels"][model])
    row.set("precision", precision)
    performance = variant.performance()
    row.set("average_performance", performance.mean, performance.reason)
    row.set("AL_sum_ms", *_latency_sum(variant))
    main = _Workload(variant.profile, spec["config"]["workload"])
    row.set("IT_tokens_per_s", *main.figure("throughput_tokens_per_s"))
    row.set("AMU_GB", *main.window.memory("avg"))
    row.set("AEC_W", *main.window.figure("power_avg_w"))
    compression = _compression(variant, baseline)
    row.set("MCR", *compression["nominal"])
    performance.set_interval(row, "average_performance")
    _set_workload(row, main)
    if variant.has_images(main.id):
        for column, figure in _VISION_COLUMNS.items():
            row.set(column, *main.vision(figure))
    for id in variant.workloads():
        if id != main.id:
            other = _Workload(variant.profile, id)
            row.set(f"{id}_latency_ms", *other.figure("latency_ms"))
            row.set(f"{id}_IT_tokens_per_s", *other.figure("throughput_tokens_per_s"))
            row.set(f"{id}_prefill_tokens_per_s", *other.figure("prefill_tokens_per_s"))
            row.set(f"{id}_decode_tokens_per_s", *other.figure("decode_tokens_per_s"))
            row.set(f"{id}_AMU_GB", *other.window.memory("avg"))
            row.set(f"{id}_memory_peak_GB", *other.window.memory("peak"))
            row.set(f"{id}_AEC_W", *other.window.figure("power_avg_w"))
            row.set(f"{id}_energy_J_per_token", *other.energy("energy_j_per_token"))
            row.set(f"{id}_decode_mbu", *other.utilization("decode_mbu"))
            if variant.has_images(id):
                for column, figure in _VISION_COLUMNS.items():
                    row.set(f"{id}_{column}", *other.vision(figure))
            row.set(f"{id}_status", other.status)
    row.set("mcr_nominal", *compression["nominal"])
    row.set("mcr_measured", *compression["measured"])
    _set_weights(row, variant)
    _set_scores(row, variant)
    _set_divergences(row, variant, compared)
    profile = variant.profile.content
    row.set("device", profile.device.name if profile else None, main.absent)
    row.set("device_id", *(device_id(profile.device) if profile else (None, main.absent)))
    row.set("devices", profile.device.count if profile else None, main.absent)
    row.set("placement", profile.placement if profile else None, main.absent)
    row.set("threads", profile.threads if profile else None, main.absent)
    row.set("software", *software([variant.quantize, variant.profile, *variant.scores.values()]))
    row.set("kernel", *_kernel(variant, main))
    row.set("windows", *main.window.figure("windows"))
    row.set("windows_s", *main.window.figure("duration_s"))
    row.set("warnings", "; ".join(dict.fromkeys([*main.warnings(), *variant.warnings()])))
    return row.finish(*_status(variant, main))


class _Workload:
    """Figures of one workload of a profile: each a value, and the reason why not if it is None."""

    def __init__(self, profile: Result[Profile], id: str):
        self.id = id
        self.status, self.reason = profile.status, profile.reason
        self.absent = f"profile is {profile.status}"
        self.content = profile.content.workloads[id] if profile.content else None
        if self.content:
            self.status, self.reason = self.content.status, self.content.reason
            if self.content.figures is None:
                self.content, self.absent = None, f"workload {id} is {self.status}: {self.reason}"
        telemetry = self.content.telemetry if self.content else None
        self.window = Window(telemetry.generate if telemetry else None, self.absent)

    def figure(self, name: str) -> Cell:
        """Of `Latency`."""
        return (getattr(self.content.figures, name) if self.content else None), self.absent

    def energy(self, name: str) -> Cell:
        """Of `Energy`."""
        energy = self.content.energy if self.content else None
        return energy.cell(name) if energy else (None, self.absent)

    def utilization(self, name: str) -> Cell:
        """Of `Utilization`."""
        utilization = self.content.utilization if self.content else None
        return utilization.cell(name) if utilization else (None, self.absent)

    def vision(self, name: str) -> Cell:
        """Of `VisionFigures`."""
        vision = self.content.vision if self.content else None
        return vision.cell(name) if vision else (None, self.absent)

    def warnings(self) -> list[str]:
        findings = self.content.findings if self.content else []
        return [finding.message for finding in findings if finding.severity == "warning"]


def _set_workload(row: Row, workload: _Workload) -> None:
    for column in _LATENCY_COLUMNS:
        row.set(column, *workload.figure(column))
    for column, figure in (("latency_ms", "latency_ms_ci95"), ("IT_tokens_per_s", "throughput_tokens_per_s_ci95")):
        low, high = workload.figure(figure)[0] or (None, None)
        row.set(f"{column}_low", low, workload.absent)
        row.set(f"{column}_high", high, workload.absent)
    row.set("AMU_scope", *workload.window.memory_scope())
    row.set("memory_peak_GB", *workload.window.memory("peak"))
    row.set("AMU_fraction", *workload.window.memory_fraction())
    for column in _TELEMETRY_COLUMNS:
        row.set(column, *workload.window.figure(column))
    row.set("prefill_mfu", *workload.utilization("prefill_mfu"))
    row.set("decode_mbu", *workload.utilization("decode_mbu"))
    for column, name in _ENERGY_COLUMNS.items():
        row.set(column, *workload.energy(name))


def _status(variant: _Variant, main: _Workload) -> tuple[str, str | None]:
    failure = variant.first_failure()
    if failure:
        return failure.status, f"{failure.manifest.stage}: {failure.reason}"
    if main.status != "ok":
        return main.status, main.reason
    # Scores do not depend on who else was there; the row's AL_sum_ms does.
    return status_of(disturbances(variant.scores))


def _latency_sum(variant: _Variant) -> tuple[float | None, str | None]:
    """The paper's AL: mean time of a request, summed over the benchmarks."""
    contents = {id: result.content for id, result in variant.scores.items() if result.content is not None}
    failed = [id for id in variant.scores if id not in contents]
    if failed:
        return None, f"{', '.join(failed)} was not scored"
    if not variant.scores:
        return None, variant.unscored or "the table has no benchmark"
    return math.fsum(content.cost.latency_mean_ms for content in contents.values()), None


def _compression(variant: _Variant, baseline: _Variant) -> dict[str, tuple[float | None, str | None]]:
    """MCR (Eq 9): ratio of sizes times ratio of performances, by nominal bits and by bytes on disk."""
    performance, original = variant.performance(), baseline.performance()
    if performance.mean is None or not original.mean:
        reason = performance.reason or original.reason or "the baseline's performance is 0"
        return {"nominal": (None, reason), "measured": (None, reason)}
    contents = baseline.quantize.content, variant.quantize.content
    # What was scored was quantized.
    assert contents[0] is not None and contents[1] is not None
    bits = baseline.precision.nominal_bits, variant.precision.nominal_bits
    sizes = contents[0].weights.bytes, contents[1].weights.bytes
    return {
        "nominal": (model_compression_rate(*bits, original.mean, performance.mean), None),
        "measured": (model_compression_rate(*sizes, original.mean, performance.mean), None),
    }


def _set_weights(row: Row, variant: _Variant) -> None:
    content = variant.quantize.content
    precision = variant.precision
    reason = f"quantize is {variant.quantize.status}"
    weights = content.weights if content else None
    row.set("weight_bytes", weights.bytes if weights else None, reason)
    packed = weights.quantized_layers_bytes if weights else None
    row.set("quantized_layers_bytes", packed, precision.why_empty if content else reason)
    unpacked = weights.quantized_layers_bytes_16_bit if weights else None
    ratio = unpacked / packed if unpacked and packed else None
    row.set("quantized_layers_compression", ratio, precision.why_empty if content else reason)
    for key in setting_columns():
        row.set(key, getattr(precision, key, None), precision.why_empty)
    row.set("calibration", _calibration(precision.calibration_set()), precision.why_empty)


def _calibration(calibration: Calibration | None) -> str | None:
    if calibration is None:
        return None
    size = f"{calibration.samples} x {calibration.sequence_length}"
    return f"{size} tokens of {calibration.corpus}" if calibration.corpus else f"{size} random tokens"


def _kernel(variant: _Variant, main: _Workload) -> tuple[str | None, str]:
    if not variant.precision.is_quantized:
        return None, variant.precision.why_empty
    profile = variant.profile.content
    # Profiles of earlier revisions hold no kernel.
    return (profile.kernel, "the profile does not say") if profile else (None, main.absent)


def _set_scores(row: Row, variant: _Variant) -> None:
    for benchmark, result in variant.scores.items():
        content, reason = result.content, f"evaluate is {result.status}: {result.reason}"
        interval = (content.ci95 if content else None) or (None, None)
        row.set(f"{benchmark}_score", content.score if content else None, reason)
        row.set(f"{benchmark}_low", interval[0], "lm-eval gives no standard error" if content else reason)
        row.set(f"{benchmark}_high", interval[1], "lm-eval gives no standard error" if content else reason)
        row.set(f"{benchmark}_chance", content.chance_level if content else None, reason)
        row.set(f"{benchmark}_better", *better(result))


def _compared(benchmarks: list[str], evaluations: Mapping[str, Result[Any]]) -> list[str]:
    """The benchmarks on whose text precisions were compared token by token."""
    asked = {id.rpartition(".")[2] for id, result in evaluations.items() if _reference(result) is not None}
    return [benchmark for benchmark in benchmarks if benchmark in asked]


def _reference(result: Result[Evaluation]) -> str | None:
    """The precision with which an evaluation's model was compared; None where it was with none."""
    reference: str | None = result.manifest.spec["config"]["protocol"].get("divergence_from")
    return reference


def _set_divergences(row: Row, variant: _Variant, compared: list[str]) -> None:
    for benchmark in compared:
        result = variant.scores[benchmark]
        content = result.content.divergence if result.content else None
        reference, itself = _reference(result), "it is what the others are compared with"
        absent = itself if reference is None else result.absent
        row.set(f"{benchmark}_divergence_from", reference, itself)

        def cell(name: str, content: Divergence | None = content, absent: str = absent) -> Cell:
            return content.cell(name) if content else (None, absent)

        for column, figure in (("kl_nats", "kl_nats"), ("ppl_ratio", "perplexity_ratio")):
            row.set(f"{benchmark}_{column}", *cell(figure))
            edges, reason = cell(f"{figure}_ci95")
            for edge, value in zip(("low", "high"), edges or (None, None), strict=True):
                row.set(f"{benchmark}_{column}_{edge}", value, reason)
        row.set(f"{benchmark}_kl_nats_stderr", *cell("kl_nats_stderr"))
        row.set(f"{benchmark}_nll_change_nats", *cell("nll_change_nats"))
        row.set(f"{benchmark}_nll_change_nats_stderr", *cell("nll_change_nats_stderr"))
        row.set(f"{benchmark}_same_top_token", *cell("same_top_token"))
