"""Models under load: one row per model, load and precision."""

from collections.abc import Mapping
from typing import Any

from effllm.results.evaluation import Evaluation
from effllm.results.latency import LoadFigures, RequestLatencies, ServedRequests
from effllm.results.serving import ServedLoad, Serving
from effllm.serving.settings import CLOSED, REPLAYED, SATURATED
from effllm.serving.slo import LargestRate, MeasuredRate, Slo, largest_rate, requests_that_meet, share_interval
from effllm.tables.accuracy import average_performance
from effllm.tables.artifacts import Result, read_results
from effllm.tables.cells import Cell, Row
from effllm.tables.columns.serving import LATENCIES, PERCENTILES
from effllm.tables.conditions import device_id, software
from effllm.tables.window import Window

_NO_SLO = "the table has no slo"
_LOADS = {SATURATED: "saturation", CLOSED: "closed loop", REPLAYED: "replay"}
_NO_RATE = "a closed loop has no rate, nor has a trace that is replayed"
_TELEMETRY_COLUMNS = ("util_nvml", "util_cpu", "power_peak_w", "energy_source", "energy_scope")
_ENGINE_COLUMNS = {
    "cache_mean": "cache_mean_fraction",
    "cache_peak": "cache_peak_fraction",
    "running_mean": "running_mean",
    "waiting_peak": "waiting_peak",
    "preemptions": "preemptions",
}


def serving_table(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows, load by load of each model and precisions within: `spec` is `Graph.table_spec("serving")`."""
    results = {stage: read_results(stage, paths) for stage, paths in inputs.items()}
    config = spec["config"]
    slo = Slo.model_validate(config["slo"]) if config["slo"] else None
    rows = []
    for model in config["models"]:
        served = {
            precision: _Served(f"{model}.{precision}", config, results, slo) for precision in config["precisions"]
        }
        for load in spec["loads"]:
            rows += [_row(spec["model_labels"][model], load, name, variant) for name, variant in served.items()]
    return rows


class _Served:
    """The artifacts of one model in one precision, and what they say of the objective."""

    def __init__(
        self, id: str, config: Mapping[str, Any], results: Mapping[str, Mapping[str, Result[Any]]], slo: Slo | None
    ):
        self.slo = slo
        self.serve: Result[Serving] = results["serve"][f"{id}.{config['serving']}"]
        self.quantize: Result[Any] = results["quantize"][id]
        self.scores: dict[str, Result[Evaluation]] = {
            benchmark: results["evaluate"][f"{id}.{benchmark}"] for benchmark in config["benchmarks"]
        }
        self.requests: Mapping[str, RequestLatencies] = {}
        if self.serve.content:
            self.serve.artifact.verify_file(ServedRequests.FILE)
            self.requests = ServedRequests.read(self.serve.artifact.directory).root
        self.largest = self._largest()

    def load(self, id: str) -> ServedLoad | None:
        """What was measured of a load."""
        return self.serve.content.loads.get(id) if self.serve.content else None

    def met(self, id: str) -> list[bool] | None:
        """Of each request of a load, whether it met the objective; None without an objective or a request."""
        latencies = self.requests.get(id)
        return (requests_that_meet(self.slo, latencies) or None) if self.slo and latencies else None

    def _largest(self) -> LargestRate | str:
        """The largest rate that meets the objective, over the loads that count; or why there is none to ask for."""
        content = self.serve.content
        if self.slo is None or content is None:
            return _NO_SLO if self.slo is None else self.serve.absent
        if content.saturated_requests_per_s is None:
            return _NO_RATE
        measured = [
            MeasuredRate(load.requests_per_s, met)
            for id, load in content.loads.items()
            if load.status == "ok" and load.requests_per_s is not None and (met := self.met(id))
        ]
        return largest_rate(self.slo, measured)


def _row(label: str, id: str, precision: str, variant: _Served) -> dict[str, Any]:
    row = Row()
    name = _LOADS[id] if id in _LOADS else f"{100 * float(id):g} %"
    load = variant.load(id)
    absent = variant.serve.absent if variant.serve.content is None else f"the load {id} was not measured"
    row.set("served", f"{label} at {name}")
    row.set("precision", precision)
    performance = average_performance(variant.scores)
    row.set("average_performance", performance.mean, performance.reason)
    _set_largest(row, variant.largest)
    figures = load.figures if load else None
    if load and figures is None:
        absent = f"the load is {load.status}: {load.reason}"
    for column in ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s"):
        row.set(column, getattr(figures, column) if figures else None, absent)
    _set_objective(row, variant, id, figures, absent)
    _set_latencies(row, figures, absent)
    window = Window(load.telemetry if load else None, absent)
    _set_energy(row, variant, load, window, absent)
    for column, figure in _ENGINE_COLUMNS.items():
        row.set(column, *(load.engine.cell(figure) if load else (None, absent)))
    performance.set_interval(row, "average_performance")
    row.set("model", label)
    row.set("load", name)
    _set_conditions(row, variant, load, absent)
    row.set("window_s", *window.figure("duration_s"))
    findings = load.findings if load else []
    warnings = [finding.message for finding in findings if finding.severity == "warning"]
    row.set("warnings", "; ".join(dict.fromkeys(warnings)))
    return row.finish(*_status(variant, load, absent))


def _set_largest(row: Row, largest: LargestRate | str) -> None:
    if isinstance(largest, str):
        for column in ("max_rate_per_s", "max_rate_per_s_low", "max_rate_per_s_high", "max_rate_between"):
            row.set(column, None, largest)
        return
    row.set("max_rate_per_s", largest.rate_per_s, largest.reasons.get("rate_per_s"))
    row.set("max_rate_per_s_low", largest.low, largest.reasons.get("low"))
    row.set("max_rate_per_s_high", largest.high, largest.reasons.get("high"))
    between = "{:.4g} and {:.4g}".format(*largest.between) if largest.between else None
    row.set("max_rate_between", between, largest.reasons.get("between"))


def _set_objective(row: Row, variant: _Served, id: str, figures: LoadFigures | None, absent: str) -> None:
    met = variant.met(id) if figures else None
    why = _NO_SLO if variant.slo is None else absent
    row.set("goodput_requests_per_s", sum(met) / figures.duration_s if met and figures else None, why)
    row.set("slo_share", sum(met) / len(met) if met else None, why)
    low, high = share_interval(met) if met else (None, None)
    row.set("slo_share_low", low, why)
    row.set("slo_share_high", high, why)


def _set_latencies(row: Row, figures: LoadFigures | None, absent: str) -> None:
    for latency in LATENCIES:
        for name in PERCENTILES:
            percentile = getattr(getattr(figures, latency), name) if figures else None
            for column, figure in (("", "value_ms"), ("_low", "low_ms"), ("_high", "high_ms")):
                cell: Cell = percentile.cell(figure) if percentile else (None, absent)
                row.set(f"{latency}_ms_{name}{column}", *cell)


def _set_energy(row: Row, variant: _Served, load: ServedLoad | None, window: Window, absent: str) -> None:
    for kind in ("energy", "energy_above_idle"):
        cell = load.energy.cell(f"{kind}_j_per_output_token") if load else (None, absent)
        row.set(f"{kind}_J_per_output_token", *cell)
    roofline = load.roofline if load else None
    unsaid = "an earlier version of this program wrote the result" if load and load.figures else absent
    row.set("decode_mbu", *(roofline.cell("decode_mbu") if roofline else (None, unsaid)))
    row.set("AMU_GB", *window.memory("avg"))
    row.set("AMU_scope", *window.memory_scope())
    row.set("memory_peak_GB", *window.memory("peak"))
    row.set("AMU_fraction", *window.memory_fraction())
    row.set("AEC_W", *window.figure("power_avg_w"))
    content = variant.serve.content
    row.set("idle_W", *(content.idle.cell("power_avg_w") if content else (None, absent)))
    for column in _TELEMETRY_COLUMNS:
        row.set(column, *window.figure(column))


def _set_conditions(row: Row, variant: _Served, load: ServedLoad | None, absent: str) -> None:
    content = variant.serve.content
    row.set("saturated_requests_per_s", *_saturated(content, absent))
    greedy = content.greedy if content else None
    compared = f"{greedy.identical} of {greedy.requests}" if greedy and greedy.requests else None
    row.set("greedy_identical", compared, "the engine gives no ids of tokens" if content else absent)
    at_a_rate = "requests arrive at a rate"
    no_rate = absent if load is None else "all come at one moment" if load.concurrency is None else "a closed loop"
    row.set("offered_requests_per_s", load.requests_per_s if load else None, no_rate)
    row.set("concurrency", load.concurrency if load else None, at_a_rate if load else absent)
    asked = variant.serve.manifest.spec["config"]["load"]
    row.set("arrivals", _phrase(asked["arrivals"]))
    for column in ("prompt_tokens", "output_tokens"):
        row.set(column, _phrase(asked[column] or asked["trace"]))
    slo = variant.slo
    limits = ", ".join(f"{name.removesuffix('_ms')} {limit:g} ms" for name, limit in slo.limits.items()) if slo else ""
    row.set("slo", f"{limits} for {100 * slo.share:g} %" if slo else None, _NO_SLO)
    figures = load.figures if load else None
    row.set("requests", figures.requests if figures else None, absent)
    row.set("completed", figures.completed if figures else None, absent)
    row.set("dispatch_lag_ms_p99", load.dispatch_lag_p99_ms if load else None, absent)
    row.set("client_cpu", load.client_cpu_fraction if load else None, absent)
    engine = content.engine if content else None
    row.set("engine", f"{engine.kind} {engine.version}" if engine else None, absent)
    row.set("device", content.device.name if content else None, absent)
    row.set("device_id", *(device_id(content.device) if content else (None, absent)))
    row.set("devices", content.device.count if content else None, absent)
    row.set("threads", content.threads if content else None, absent)
    row.set("software", *software([variant.quantize, variant.serve, *variant.scores.values()]))


def _saturated(content: Serving | None, absent: str) -> Cell:
    if content is None:
        return None, absent
    return content.saturated_requests_per_s, _NO_RATE


def _phrase(settings: Mapping[str, Any]) -> str:
    """Arrivals, or a length, in a phrase: `poisson`, `gamma (burstiness 0.5)`, `128`, `mooncake trace`."""
    kind = settings.get("kind")
    if kind is None:
        return f"{settings['format']} trace {settings['path']}, lengths times {settings['length_factor']:g}"
    if kind == "fixed":
        return str(settings["tokens"])
    rest = ", ".join(f"{key} {value:g}" for key, value in settings.items() if key != "kind")
    return f"{kind.replace('_', ' ')} ({rest})" if rest else str(kind)


def _status(variant: _Served, load: ServedLoad | None, absent: str) -> tuple[str, str | None]:
    for result in (variant.quantize, variant.serve):
        if result.status != "ok":
            return result.status, f"{result.manifest.stage}: {result.reason}"
    return (load.status, load.reason) if load else ("invalid", absent)
