"""Time of the stages that use a model as it is: quantize, evaluate, profile."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effllm.models.costs import parameter_count
from effllm.planning.reference.decoding import Pace, pace, reading_s
from effllm.planning.reference.rates import Reference, all_of, beyond_size, good_for, nearest, rows
from effllm.quantization import read_precision
from effllm.stages.cost import NodeContext
from effllm.stages.weights import precision_b
from effllm.study.evaluation import EvaluationProtocol, InferenceProtocol, Workload
from effllm.telemetry.peaks import peak_flops_per_s

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape

# From the start of the stage to the first kernel, and reading of weights from the disk. A profile imports less.
_START_S = 10.0
_PROFILE_START_S = 3.0
_LOADED_B_PER_S = 1.5e9
# What a length of the growing cache costs the host when it is met first, in each size of batch: the first generation of
# the workloads in small-shapes.json took so much more than the next. By CUDA graphs the cache has one length.
_NEW_LENGTH_S = 0.068
# The two forward passes of each calibration text, as scoring: GPTQ takes a layer at a time.
_PASSES = 2
# Power while a model is read was not measured apart: that of training, which is as bound by arithmetic.
_READING_POWER_W = 690.0
_AUTO_BATCH = 16


def quantizing(precision: Mapping[str, Any], shape: "Shape", device: str) -> Reference | None:
    """Time of a quantization: parameters at the measured pace, and what more or less text to calibrate on takes."""
    if peak_flops_per_s(device, "bfloat16") is None:
        return None
    parameters = float(parameter_count(shape).total)
    calibration = read_precision(precision).calibration_set()
    # Of kinds that were not measured, those that calibrate are taken for GPTQ, others for casts.
    like = "cast" if calibration is None else "gptq"
    measured_kinds = {row["kind"] for row in rows("quantize")}
    kind = precision["kind"] if precision["kind"] in measured_kinds else like
    row = nearest((row for row in rows("quantize") if row["kind"] == kind), parameters)
    measured = float(row["parameters"])
    seconds = float(row["seconds"]) * parameters / measured
    work = ""
    if calibration is not None:
        length = calibration.sequence_length
        more = calibration.samples - int(row["calibration_tokens"]) / length
        read = reading_s(shape, 1, length, device)
        assert read is not None
        seconds += max(_PASSES * more * read[0], -0.5 * seconds)
        work = f"{calibration.samples} x {length:,} tokens of calibration"
    doubts = [
        None if row["kind"] == precision["kind"] else f"no {precision['kind']} was measured",
        beyond_size(parameters, measured),
    ]
    rate = f"{float(row['seconds']):.0f} s of {row['run']} on {row['device']}, {good_for(measured)}"
    # Its power was not measured: that of a card that decodes.
    power_w = float(rows("decoding")[0]["generate_power_w"])
    return Reference(seconds, power_w, row["device"], rate, work, all_of(doubts))


def profiling(node: NodeContext, shape: "Shape", precision: Mapping[str, Any], device: str) -> Reference | None:
    """Time of the protocol: rests, warm-ups, and windows that end with a whole generation."""
    protocol = InferenceProtocol.model_validate(dict(node.config))
    weights_b = precision_b(shape, precision)
    seconds, energy_j = _PROFILE_START_S + weights_b / _LOADED_B_PER_S + protocol.idle_s, 0.0
    unsettled_s, known, met = 0.0, None, dict[int, int]()
    for workload in protocol.workloads.values():
        known = pace(shape, precision["kind"], weights_b, workload.prompt_tokens, device)
        if known is None:
            return None
        for one_s in _phases_s(known, workload):
            windows_s = protocol.repeats * math.ceil(protocol.minimum_window_s / one_s) * one_s
            warmups_s = protocol.warmup_minimum * one_s
            seconds += windows_s + warmups_s + protocol.repeats * protocol.cooldown_s
            energy_j += (windows_s + warmups_s) * known.power_w(workload.cuda_graph)
            unsettled_s += (protocol.warmup_maximum - protocol.warmup_minimum) * one_s
        if not workload.cuda_graph:
            longest = workload.prompt_tokens + workload.new_tokens - 1
            new = longest - max(met.get(workload.batch_size, 0), workload.prompt_tokens)
            seconds += max(new, 0) * _NEW_LENGTH_S
            met[workload.batch_size] = max(met.get(workload.batch_size, 0), longest)
    if known is None:
        return None
    power_w = energy_j / seconds
    work = (
        "rests, warm-ups and windows of the protocol, up to "
        f"{unsettled_s:,.0f} s more where a noisy host's times do not settle"
    )
    return Reference(seconds, power_w, known.row["device"], known.rate, work, known.beyond)


def evaluating(
    node: NodeContext, shape: "Shape", precision: Mapping[str, Any], benchmark: Mapping[str, Any], device: str
) -> Reference | str | None:
    """Time of scoring a benchmark at what it is known to ask for; why not, where nobody has counted that."""
    protocol = EvaluationProtocol.model_validate(node.config["protocol"])
    task = benchmark.get("task") or benchmark["kind"]
    asked = next((row for row in rows("benchmarks") if row["task"] == task), None)
    if asked is None:
        return f"nobody has counted what {task} asks for: known once one model was scored on it"
    parts = int(asked["parts"])
    limit = benchmark.get("limit") or benchmark.get("items")
    items = int(asked["items"]) if limit is None else min(int(asked["items"]), limit * parts)
    requests = items * int(asked["requests"]) * int(benchmark.get("samples") or 1)
    length = min(int(asked["prompt_tokens"]), protocol.max_length or int(asked["prompt_tokens"]))
    new_tokens = int(benchmark.get("new_tokens") or asked["new_tokens"])
    weights_b = precision_b(shape, precision)
    read, known = reading_s(shape, requests, length, device), pace(shape, precision["kind"], weights_b, length, device)
    if read is None or known is None:
        return None
    reading, rate, beyond = read
    batch = protocol.batch_size if isinstance(protocol.batch_size, int) else _AUTO_BATCH
    writing = math.ceil(requests / batch) * new_tokens * known.forward_ms(False, False) / 1000
    seconds = _START_S + weights_b / _LOADED_B_PER_S + reading + writing
    said = f"{requests:,} requests of about {length:,} tokens"
    doubts = [beyond]
    if new_tokens:
        doubts += [known.beyond] if known.beyond != beyond else []
        said += f", each answered with {new_tokens:,} tokens, so at most, by {known.rate}"
    power_w = (reading * _READING_POWER_W + writing * known.power_w(False)) / max(reading + writing, 1e-9)
    return Reference(seconds, power_w, known.row["device"], rate, said, all_of(doubts))


def _phases_s(known: Pace, workload: Workload) -> tuple[float, float]:
    """Seconds of one generation and of one prefill of a workload."""
    graph, sequences = workload.cuda_graph, workload.batch_size
    prefill_ms = known.forward_ms(True, graph, sequences)
    return (prefill_ms + (workload.new_tokens - 1) * known.forward_ms(False, graph)) / 1000, prefill_ms / 1000
