"""The terms in which a stage says what a node costs, before any device is named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from effllm.models.costs import parameter_count

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ON_THE_CPU = "it works on the CPU, though its job holds a device"
_ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


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


def number_type(dtype: str) -> Any:
    """What the formulas ask of a torch type, its size in bytes, without the import of torch."""
    return SimpleNamespace(itemsize=_ITEM_SIZES[dtype])


def stored_b(shape: "PreTrainedConfig") -> Mapping[str, Any]:
    """`disk_b` of a checkpoint in the type that its configuration names, as keys of `Cost`."""
    stored = str(getattr(shape, "dtype", None)).removeprefix("torch.")
    if stored not in _ITEM_SIZES:
        return {"reasons": {"disk_b": "its configuration does not say in which type the weights are stored"}}
    return {"disk_b": float(parameter_count(shape).total * _ITEM_SIZES[stored])}
