"""What a node of each stage costs in terms that no device decides: one function per stage.

A function gets the node's own slice of the study and the model it is about, and says what its time grows with, the
FLOPs where time follows from them, and the bytes it needs on the device and on disk. A stage without a function is
planned from earlier builds of the same node alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from effllm.models.costs import cache_bytes, describe, forward_flops, parameter_count
from effllm.models.text import context_length, text_config
from effllm.planning.cost import ON_THE_CPU, Cost, StageCost, Subject, number_type, stored_b
from effllm.planning.shapes import Unknown
from effllm.planning.training_costs import TRAINING_COSTS
from effllm.quantization import read_precision
from effllm.study.measure import EvaluationProtocol, InferenceProtocol

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def cost_of(stage: str, subject: Subject) -> Cost:
    """The cost of one node; what is not known of its model is None with its reason."""
    if stage not in COSTS:
        return Cost(devices=0, kind=subject.id, reasons={"disk_b": f"{stage}: known once it is built"})
    base = COSTS[stage].base(subject)
    try:
        return replace(base, **COSTS[stage].of_model(subject, subject.shape()))
    except Unknown as error:
        why = str(error)
    except ValueError as error:
        # An architecture without formulas, or a model that an adjusted study does not describe any more.
        why = str(error).splitlines()[0]
    return replace(base, reasons=dict.fromkeys(("work", "memory_b", "disk_b", "scratch_b"), why))


def _by_id(subject: Subject) -> Cost:
    return Cost(0, subject.id)


def _imported_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    return stored_b(shape)


def _quantize(subject: Subject) -> Cost:
    return Cost(1, read_precision(subject.config["precision"]).work)


def _quantize_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    on_device = read_precision(subject.config["precision"]).works_on_device
    reason = "the quantizer moves one layer at a time to the device: no formula has its peak"
    return {
        "work": float(parameter_count(shape).total),
        "disk_b": weight_b(shape, subject.config["precision"]),
        "reasons": {"memory_b": reason if on_device else ON_THE_CPU, "scratch_b": "not measured"},
    }


def weight_b(shape: "PreTrainedConfig", precision: Mapping[str, Any]) -> float:
    """Bytes of a model's weights in a precision, by its own formula of packed layers and other parameters."""
    settings, total = read_precision(precision), parameter_count(shape).total
    model = describe(shape)
    packed = model.num_layers * model.layer.matmul_parameters
    return settings.weight_bytes(packed, total - packed)


def _evaluate(subject: Subject) -> Cost:
    protocol = _evaluation_protocol(subject)
    precision = (subject.config_of("model") or {}).get("precision")
    name = read_precision(precision).label if precision else "a model"
    limits = f"batch {protocol.batch_size}, {protocol.max_length} tokens"
    return Cost(1, f"{subject.id_of('benchmark')} in {name}, {limits}")


def _evaluate_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    protocol = _evaluation_protocol(subject)
    weights_b = _weights_of_parent(subject, shape)
    known = {"work": float(forward_flops(shape, 1)), "memory_least_b": weights_b}
    own_limit = context_length(shape)
    lengths = [length for length in (protocol.max_length, own_limit) if length]
    missing = {"disk_b": "the size of the answers is known once a model was scored", "scratch_b": "not measured"}
    if not lengths:
        why = "neither evaluation.max_length nor the model limits the length of an input"
        return known | {"reasons": missing | {"memory_b": why}}
    # At the longest input: 16-bit logits, and in float32 the logarithm of their softmax, at every position of a batch.
    logits_b = protocol.batch_size * min(lengths) * text_config(shape).vocab_size * (2 + 4)
    return known | {"memory_b": weights_b + logits_b, "reasons": missing}


def _evaluation_protocol(subject: Subject) -> EvaluationProtocol:
    return EvaluationProtocol.model_validate(subject.config["protocol"])


def _profile(subject: Subject) -> Cost:
    protocol = InferenceProtocol.model_validate(dict(subject.config))
    windows = 2 * len(protocol.workloads) * protocol.repeats
    seconds = protocol.idle_s + windows * (protocol.minimum_window_s + protocol.cooldown_s)
    return Cost(1, f"protocol {protocol.plain()}", protocol_s=seconds)


def _profile_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    protocol = InferenceProtocol.model_validate(dict(subject.config))
    caches_b = [
        workload.batch_size * cache_bytes(shape, workload.prompt_tokens + workload.new_tokens, number_type("bfloat16"))
        for workload in protocol.workloads.values()
    ]
    missing = {"disk_b": "the size of the samples is known once a model was profiled", "scratch_b": "not measured"}
    return {"memory_b": _weights_of_parent(subject, shape) + max(caches_b), "reasons": missing}


def _weights_of_parent(subject: Subject, shape: "PreTrainedConfig") -> float:
    parent = subject.config_of("model")
    if parent is None or "precision" not in parent:
        raise Unknown("the precision that its model had is not known any more")
    return weight_b(shape, parent["precision"])


COSTS: dict[str, StageCost] = {
    **TRAINING_COSTS,
    "model": StageCost(_by_id, _imported_model),
    "quantize": StageCost(_quantize, _quantize_model),
    "evaluate": StageCost(_evaluate, _evaluate_model),
    "profile": StageCost(_profile, _profile_model),
}
"""By stage. To plan a new stage by more than its earlier builds, add an entry."""
