"""The terms in which a stage says what a node costs, before any device is named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape

ON_THE_CPU = "it works on the CPU, though its job holds a device"
_ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Unknown(Exception):
    """A figure that is not known; the message says why, and how to make it known."""


@dataclass(frozen=True)
class NodeContext:
    """What a stage may ask about a node.

    config: the node's slice of the study (`spec["config"]`). shape: the configuration of its model; raises `Unknown`.
    config_of: the slice of the parent behind an input name, id_of its id; None where there is none. Behind two names,
    "encodings.captions", is a parent's parent.
    """

    id: str
    config: Mapping[str, Any]
    shape: Callable[[], "Shape"]
    config_of: Callable[[str], Mapping[str, Any] | None]
    id_of: Callable[[str], str | None]


@dataclass(frozen=True)
class Cost:
    """Cost of a node; None where it does not apply or is not known, then with the reason in `reasons`.

    devices: accelerators held while it runs, 0 for stages of the CPU. kind: earlier builds of the same kind compare.
    work: what time grows with; None with no reason: time does not depend on the model. flops: model FLOPs, where time
    follows from them. protocol_s: seconds that the protocol itself prescribes. memory_b: bytes on one device at the
    peak, counted from tensors; memory_least_b: what it cannot do without, where that is less; spreads: over
    the devices go the layers of one model, which work in turn; then both are of all devices together, and `devices` is
    what the study asks for or, as needed, follows from them. disk_b, scratch_b: bytes
    published, and bytes beside them while it runs.
    """

    devices: int
    kind: str
    work: float | None = None
    flops: float | None = None
    protocol_s: float | None = None
    memory_b: float | None = None
    memory_least_b: float | None = None
    spreads: Literal["as needed", "as asked"] | None = None
    disk_b: float | None = None
    scratch_b: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


def with_model(cost: Cost, node: NodeContext, of_shape: Callable[["Shape"], Mapping[str, Any]]) -> Cost:
    """The cost with what the shape of the node's model adds, keys of `Cost`; with reasons where that is not known."""
    try:
        return replace(cost, **of_shape(node.shape()))
    except Unknown as error:
        why = str(error)
    except ValueError as error:
        # An architecture without formulas, or a model that an adjusted study does not describe any more.
        why = str(error).splitlines()[0]
    return replace(cost, reasons=dict.fromkeys(("work", "memory_b", "disk_b", "scratch_b"), why))


def number_type(dtype: str) -> Any:
    """What the formulas ask of a torch type, its size in bytes, without the import of torch."""
    return SimpleNamespace(itemsize=_ITEM_SIZES[dtype])
