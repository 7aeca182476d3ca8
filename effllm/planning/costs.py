"""What a node of each stage costs in terms that no device decides: one function per stage.

A function gets the node's own slice of the study and the model it is about, and says what its time grows with, the
FLOPs where time follows from them, and the bytes it needs on the device and on disk. A stage without a function is
planned from earlier builds of the same node alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from effllm.models.arithmetic import (
    activation_bytes,
    cache_bytes,
    describe,
    forward_flops,
    optimizer_bytes,
    parameter_count,
    training_flops,
)
from effllm.planning.shapes import Unknown
from effllm.study.measure import EvaluationProtocol, InferenceProtocol
from effllm.study.models import GptqPrecision, Precision
from effllm.study.training import PretrainingRun, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a checkpoint to resume from: float32 weights and AdamW's two moments. The Trainer keeps two and writes a third.
_CHECKPOINT_B_PER_PARAMETER = 12
_CHECKPOINTS = 3
# The scale of a group of quantized weights; its zero point has the weights' own bits.
_SCALE_BITS = 16
_PRECISION = TypeAdapter(Precision)


@dataclass(frozen=True)
class Subject:
    """What a cost function may ask about a node.

    config: the node's slice of the study (`spec["config"]`). shape: the configuration of its model; raises `Unknown`.
    config_of: the slice of the parent behind an input name, id_of its id; None where there is none.
    """

    id: str
    config: Mapping[str, Any]
    shape: Callable[[], "PreTrainedConfig"]
    config_of: Callable[[str], Mapping[str, Any] | None]
    id_of: Callable[[str], str | None]


@dataclass(frozen=True)
class Cost:
    """Cost of a node; None where it does not apply or is not known, then with the reason in `reasons`.

    devices: accelerators held while it runs, 0 for stages of the CPU. kind: earlier builds of the same kind compare.
    work: what time grows with; None with no reason: time does not depend on the model. flops: model FLOPs, where time
    follows from them. protocol_s: seconds that the protocol itself prescribes. memory_b: bytes on one device at the
    peak, counted from tensors; memory_least_b: what it cannot do without, where that is less. disk_b, scratch_b: bytes
    published, and bytes beside them while it runs.
    """

    devices: int
    kind: str
    work: float | None = None
    flops: float | None = None
    protocol_s: float | None = None
    memory_b: float | None = None
    memory_least_b: float | None = None
    disk_b: float | None = None
    scratch_b: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageCost:
    """How a stage is planned: `base`, which needs no model, and what the model's shape adds, keys of `Cost`."""

    base: Callable[[Subject], Cost]
    of_model: Callable[[Subject, "PreTrainedConfig"], Mapping[str, Any]]


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


def _pretrain(subject: Subject) -> Cost:
    run = _pretraining_run(subject)
    return Cost(run.parallel.world_size, f"{run.dtype} training")


def _pretrain_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    run, parameters = _pretraining_run(subject), parameter_count(shape).total
    flops = run.max_steps * run.global_batch_size * training_flops(shape, run.sequence_length)
    return {
        "work": flops,
        "flops": flops,
        "memory_b": training_memory_b(shape, run),
        "disk_b": 4.0 * parameters,
        "scratch_b": float(_CHECKPOINTS * _CHECKPOINT_B_PER_PARAMETER * parameters),
    }


def _pretraining_run(subject: Subject) -> PretrainingRun:
    return PretrainingRun.model_validate(dict(subject.config))


def training_memory_b(shape: "PreTrainedConfig", recipe: Recipe) -> float:
    """Bytes on one device: float32 weights and gradients, AdamW's moments, the kept activations of a micro batch.

    A sharded part is divided by the ranks. bfloat16 is mixed precision: autocast keeps a 16-bit copy of every weight
    that it has multiplied by, for the whole of them where they are not sharded.
    """
    parameters, parallel = parameter_count(shape).total, recipe.parallel
    weights_b = gradients_b = 4.0 * parameters
    optimizer_b = float(optimizer_bytes(shape))
    shards_weights = parallel.strategy in ("fsdp2", "zero3")
    if shards_weights:
        weights_b /= parallel.world_size
    if shards_weights or parallel.strategy == "zero2":
        gradients_b /= parallel.world_size
        optimizer_b /= parallel.world_size
    if parallel.offload:
        optimizer_b = 0.0
        weights_b = 0.0 if parallel.strategy == "zero3" else weights_b
    copies_b = 2.0 * parameters if recipe.dtype == "bfloat16" and not shards_weights else 0.0
    activations_b = activation_bytes(
        shape,
        recipe.micro_batch_size,
        recipe.sequence_length,
        number_type(recipe.dtype),
        recipe.activation_checkpointing,
    )
    return weights_b + gradients_b + optimizer_b + copies_b + activations_b


def _by_id(subject: Subject) -> Cost:
    return Cost(0, subject.id)


def _imported_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    stored = str(getattr(shape, "dtype", None)).removeprefix("torch.")
    if stored not in _ITEM_SIZES:
        return {"reasons": {"disk_b": "its configuration does not say in which type the weights are stored"}}
    return {"disk_b": float(parameter_count(shape).total * _ITEM_SIZES[stored])}


def _quantize(subject: Subject) -> Cost:
    settings = _PRECISION.validate_python(subject.config["precision"])
    if not isinstance(settings, GptqPrecision):
        return Cost(0, "cast")
    calibration = settings.calibration
    return Cost(1, f"gptq {settings.bits} bit, {calibration.samples} x {calibration.sequence_length} tokens")


def _quantize_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    reason = "the quantizer moves one layer at a time to the device: no formula here gives its peak"
    return {
        "work": float(parameter_count(shape).total),
        "disk_b": weight_b(shape, subject.config["precision"]),
        "reasons": {"memory_b": reason, "scratch_b": "not measured"},
    }


def weight_b(shape: "PreTrainedConfig", precision: Mapping[str, Any]) -> float:
    """Bytes of a model's weights in a precision: 16 bits each, or the layers' products packed with their scales."""
    settings, total = _PRECISION.validate_python(precision), parameter_count(shape).total
    if not isinstance(settings, GptqPrecision):
        return 2.0 * total
    model = describe(shape)
    packed = model.num_layers * model.layer.matmul_parameters
    overhead_bits = (_SCALE_BITS + settings.bits) / settings.group_size if settings.group_size > 0 else 0.0
    return packed * (settings.bits + overhead_bits) / 8 + 2.0 * (total - packed)


def _evaluate(subject: Subject) -> Cost:
    protocol = _evaluation_protocol(subject)
    precision = (subject.config_of("model") or {}).get("precision", {})
    name = f"{precision.get('kind', 'a model')} {precision.get('dtype', precision.get('bits', ''))}".strip()
    limits = f"batch {protocol.batch_size}, {protocol.max_length} tokens"
    return Cost(1, f"{subject.id_of('benchmark')} in {name}, {limits}")


def _evaluate_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    protocol = _evaluation_protocol(subject)
    weights_b = _weights_of_parent(subject, shape)
    known = {"work": float(forward_flops(shape, 1)), "memory_least_b": weights_b}
    own_limit = getattr(shape, "max_position_embeddings", None)
    lengths = [length for length in (protocol.max_length, own_limit) if length]
    missing = {"disk_b": "the size of the answers is known once a model was scored", "scratch_b": "not measured"}
    if not lengths:
        why = "neither evaluation.max_length nor the model limits the length of an input"
        return known | {"reasons": missing | {"memory_b": why}}
    # At the longest input: 16-bit logits, and in float32 the logarithm of their softmax, at every position of a batch.
    logits_b = protocol.batch_size * min(lengths) * shape.vocab_size * (2 + 4)
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


def number_type(dtype: str) -> Any:
    """What the formulas ask of a torch type, its size in bytes, without the import of torch."""
    return SimpleNamespace(itemsize=_ITEM_SIZES[dtype])


COSTS: dict[str, StageCost] = {
    "pretrain": StageCost(_pretrain, _pretrain_model),
    "model": StageCost(_by_id, _imported_model),
    "quantize": StageCost(_quantize, _quantize_model),
    "evaluate": StageCost(_evaluate, _evaluate_model),
    "profile": StageCost(_profile, _profile_model),
}
"""By stage. To plan a new stage by more than its earlier builds, add an entry."""
