"""What a node of each stage costs in terms that no device decides: one function per stage.

A function gets the node's own slice of the study and the model it is about, and says what its time is proportional
to, the FLOPs where time follows from them, and the bytes it needs on the device and on disk. A stage without a
function is planned from earlier builds of the same node alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from effllm.planning.shapes import Unknown
from effllm.study.measure import EvaluationProtocol, InferenceProtocol
from effllm.study.models import GptqPrecision, Precision
from effllm.study.training import PretrainingRun, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a checkpoint to resume from: float32 weights and AdamW's two moments; the Trainer keeps two and writes a third.
_CHECKPOINT_B_PER_PARAMETER = 12
_CHECKPOINTS = 3
# A scale of 16 bits and a zero point of `bits` per group of quantized weights.
_SCALE_BITS = 16


@dataclass(frozen=True)
class Subject:
    """What a cost function may ask about a node.

    config: the node's slice of the study (`spec["config"]`). shape: the configuration of its model; raises `Unknown`.
    config_of: the slice of the parent behind an input name, and id_of its id; None where there is none.
    """

    id: str
    config: Mapping[str, Any]
    shape: Callable[[], "PreTrainedConfig"]
    config_of: Callable[[str], Mapping[str, Any] | None]
    id_of: Callable[[str], str | None]


@dataclass(frozen=True)
class Cost:
    """Device-free cost of a node; None where it is not known, with the reason in `reasons`.

    devices: accelerators held while it runs, 0 for stages of the CPU. kind: earlier runs of the same kind compare.
    work: what time grows with, in `unit`; None: time does not depend on the model. flops: model FLOPs, where time
    follows from them. protocol_s: seconds that the protocol itself prescribes. memory_b: bytes on one device at the
    peak, counted from tensors: the least that the node needs. disk_b, scratch_b: bytes published, bytes while it runs.
    """

    devices: int
    kind: str
    work: float | None = None
    unit: str = ""
    flops: float | None = None
    protocol_s: float | None = None
    memory_b: float | None = None
    disk_b: float | None = None
    scratch_b: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


def cost_of(stage: str, subject: Subject) -> Cost:
    """The cost of one node; never raises `Unknown`."""
    if stage not in COSTS:
        return Cost(devices=0, kind=subject.id, reasons={"disk_b": f"the size of a {stage} is known once it is built"})
    try:
        return COSTS[stage](subject)
    except Unknown as error:
        devices, kind = FALLBACKS[stage](subject)
        why = str(error)
        return Cost(devices, kind, reasons=dict.fromkeys(("work", "flops", "memory_b", "disk_b", "scratch_b"), why))


def _pretrain(subject: Subject) -> Cost:
    from effllm.models.arithmetic import parameter_count, training_flops

    run, shape = TypeAdapter(PretrainingRun).validate_python(dict(subject.config)), subject.shape()
    parameters = parameter_count(shape).total
    flops = run.max_steps * run.global_batch_size * training_flops(shape, run.sequence_length)
    return Cost(
        devices=run.parallel.world_size,
        kind="pretrain",
        work=flops,
        unit="FLOP",
        flops=flops,
        memory_b=training_memory_b(shape, run),
        disk_b=4 * parameters,
        scratch_b=_CHECKPOINTS * _CHECKPOINT_B_PER_PARAMETER * parameters,
    )


def training_memory_b(shape: "PreTrainedConfig", recipe: Recipe) -> float:
    """Bytes on one device: float32 weights and gradients, AdamW's moments, the kept activations of a micro batch.

    A sharded part is divided by the ranks. bfloat16 is mixed precision, with 16-bit copies of the weights beside them.
    """
    from effllm.models.arithmetic import activation_bytes, optimizer_bytes, parameter_count

    parameters, parallel = parameter_count(shape).total, recipe.parallel
    weights_b = gradients_b = 4.0 * parameters
    optimizer_b = float(optimizer_bytes(shape))
    if parallel.strategy in ("fsdp2", "zero3"):
        weights_b /= parallel.world_size
    if parallel.strategy in ("fsdp2", "zero2", "zero3"):
        gradients_b /= parallel.world_size
        optimizer_b /= parallel.world_size
    if parallel.offload:
        optimizer_b = 0.0
        weights_b = 0.0 if parallel.strategy == "zero3" else weights_b
    copies_b = 2.0 * parameters if recipe.dtype == "bfloat16" and parallel.strategy in ("single", "ddp", "zero2") else 0
    activations_b = activation_bytes(
        shape,
        recipe.micro_batch_size,
        recipe.sequence_length,
        number_type(recipe.dtype),
        recipe.activation_checkpointing,
    )
    return weights_b + gradients_b + optimizer_b + copies_b + activations_b


def _model(subject: Subject) -> Cost:
    from effllm.models.arithmetic import parameter_count

    shape = subject.shape()
    stored = str(getattr(shape, "dtype", None) or "").removeprefix("torch.")
    parameters = _counted(parameter_count, shape)
    if stored not in _ITEM_SIZES:
        why = "the configuration does not say in which type the weights are stored"
        return Cost(0, subject.id, work=parameters, unit="parameters", reasons={"disk_b": why})
    return Cost(0, subject.id, work=parameters, unit="parameters", disk_b=parameters * _ITEM_SIZES[stored])


def _quantize(subject: Subject) -> Cost:
    from effllm.models.arithmetic import parameter_count

    settings = _precision(subject)
    parameters = _counted(parameter_count, subject.shape()).total
    weights_b = weight_b(subject.shape(), settings)
    devices, kind = _quantize_kind(subject)
    reason = "the quantizer moves one layer at a time to the device; its peak has no formula here"
    memory_b = None if devices else 0.0
    return Cost(
        devices,
        kind,
        work=parameters,
        unit="parameters",
        memory_b=memory_b,
        disk_b=weights_b,
        scratch_b=0.0,
        reasons={} if memory_b is not None else {"memory_b": reason},
    )


def _quantize_kind(subject: Subject) -> tuple[int, str]:
    settings = _precision(subject)
    if not isinstance(settings, GptqPrecision):
        return 0, "cast"
    calibration = settings.calibration
    return 1, f"gptq {settings.bits} bit, {calibration.samples} x {calibration.sequence_length} tokens"


def weight_b(shape: "PreTrainedConfig", settings: Precision) -> float:
    """Bytes of a model's weights in a precision: 16 bits each, or the layers' products packed with their scales."""
    from effllm.models.arithmetic import describe, parameter_count

    total = _counted(parameter_count, shape).total
    if not isinstance(settings, GptqPrecision):
        return 2.0 * total
    model = describe(shape)
    packed = model.num_layers * model.layer.matmul_parameters
    overhead_bits = (_SCALE_BITS + settings.bits) / settings.group_size if settings.group_size > 0 else 0.0
    return packed * (settings.bits + overhead_bits) / 8 + 2.0 * (total - packed)


def _evaluate(subject: Subject) -> Cost:
    from effllm.models.arithmetic import cache_bytes, forward_flops

    protocol = EvaluationProtocol.model_validate(subject.config["protocol"])
    shape = subject.shape()
    devices, kind = _evaluate_kind(subject)
    limit = getattr(shape, "max_position_embeddings", None)
    length = min(filter(None, (protocol.max_length, limit)), default=None)
    per_token = _counted(forward_flops, shape, 1)
    if length is None:
        reason = "neither evaluation.max_length nor the model limits the length of an input"
        return Cost(devices, kind, work=per_token, unit="FLOP per token", reasons={"memory_b": reason})
    # The harness takes the logarithm of the softmax in float32 at every position of a batch.
    logits_b = protocol.batch_size * length * shape.vocab_size * (2 + 4)
    cache_b = protocol.batch_size * cache_bytes(shape, length, number_type("bfloat16"))
    memory_b = _weights_of_parent(subject, shape) + max(logits_b, cache_b)
    return Cost(devices, kind, work=per_token, unit="FLOP per token", memory_b=memory_b, scratch_b=0.0)


def _evaluate_kind(subject: Subject) -> tuple[int, str]:
    protocol = EvaluationProtocol.model_validate(subject.config["protocol"])
    parent = subject.config_of("model") or {}
    precision = parent.get("precision", {})
    name = f"{precision.get('kind', 'model')} {precision.get('dtype', precision.get('bits', ''))}".strip()
    return 1, f"{subject.id_of('benchmark')} in {name}, batch {protocol.batch_size}, {protocol.max_length} tokens"


def _profile(subject: Subject) -> Cost:
    from effllm.models.arithmetic import cache_bytes

    protocol = InferenceProtocol.model_validate(dict(subject.config))
    shape = subject.shape()
    devices, kind = _profile_kind(subject)
    longest_b = max(
        workload.batch_size
        * _counted(cache_bytes, shape, workload.prompt_tokens + workload.new_tokens, number_type("bfloat16"))
        for workload in protocol.workloads.values()
    )
    return Cost(
        devices,
        kind,
        protocol_s=protocol_seconds(protocol),
        memory_b=_weights_of_parent(subject, shape) + longest_b,
        scratch_b=0.0,
    )


def _profile_kind(subject: Subject) -> tuple[int, str]:
    return 1, "protocol " + repr(InferenceProtocol.model_validate(dict(subject.config)).plain())


def protocol_seconds(protocol: InferenceProtocol) -> float:
    """Rest, and two phases of every workload in `repeats` windows with a pause before each."""
    windows = 2 * len(protocol.workloads) * protocol.repeats
    return protocol.idle_s + windows * (protocol.minimum_window_s + protocol.cooldown_s)


def _weights_of_parent(subject: Subject, shape: "PreTrainedConfig") -> float:
    parent = subject.config_of("model")
    if parent is None or "precision" not in parent:
        raise Unknown("the precision of the model is not known")
    return weight_b(shape, TypeAdapter(Precision).validate_python(parent["precision"]))


def _precision(subject: Subject) -> Precision:
    return TypeAdapter(Precision).validate_python(subject.config["precision"])


def number_type(dtype: str) -> Any:
    """What the formulas ask of a torch type, without importing torch: its size in bytes."""
    return SimpleNamespace(itemsize=_ITEM_SIZES[dtype])


def _counted(formula: Callable[..., Any], shape: "PreTrainedConfig", *arguments: Any) -> Any:
    """A formula's value; `Unknown` for an architecture without formulas."""
    try:
        return formula(shape, *arguments)
    except ValueError as error:
        raise Unknown(str(error)) from None


COSTS: dict[str, Callable[[Subject], Cost]] = {
    "pretrain": _pretrain,
    "model": _model,
    "quantize": _quantize,
    "evaluate": _evaluate,
    "profile": _profile,
}
"""Cost functions by stage. To plan a new stage by more than its earlier builds, add one here."""

FALLBACKS: dict[str, Callable[[Subject], tuple[int, str]]] = {
    "pretrain": lambda subject: (PretrainingRun.model_validate(dict(subject.config)).parallel.world_size, "pretrain"),
    "model": lambda subject: (0, subject.id),
    "quantize": _quantize_kind,
    "evaluate": _evaluate_kind,
    "profile": _profile_kind,
}
"""Devices and kind of a node whose model has no known shape."""
