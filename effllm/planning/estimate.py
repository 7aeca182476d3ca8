"""Time, energy, disk and memory of one node: measured rates first, then arithmetic under stated assumptions."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from effllm.models.placement import Need
from effllm.planning.nodes import Node
from effllm.planning.reference import Reference, reference_of
from effllm.planning.reference.processor import Amount, on_processor
from effllm.planning.reference.rates import RECORDS_B
from effllm.planning.run_history import GB, RunHistory, Sample
from effllm.planning.shapes import Shapes
from effllm.planning.state import State
from effllm.stages import STAGES
from effllm.stages.cost import Cost, NodeContext, Unknown
from effllm.stages.graph import Graph
from effllm.telemetry.peaks import peak_flops_per_s

Basis = Literal["measured", "computed", "reference", "assumed"]
_ORDER: tuple[Basis, ...] = ("measured", "computed", "reference", "assumed")


@dataclass(frozen=True)
class Assumptions:
    """What the user vouches for; None assumes nothing. Each is an option of the command and stands in its output.

    mfu: share of the device's peak that training reaches. power_w: of one device at work. vocab_size: of tokenizers
    that are not there yet. network_gb_per_s: line rate of the network between hosts, for each device.
    """

    mfu: float | None = None
    power_w: float | None = None
    vocab_size: int | None = None
    network_gb_per_s: float | None = None


NOTHING_ASSUMED = Assumptions()


@dataclass(frozen=True)
class Figure:
    """A number with its origin; `value` None with the reason in `source`.

    basis: `measured`, by rates of earlier builds; `computed`, from the study and the model's arithmetic; `reference`,
    by a rate that ships with the package; `assumed`, computed with an assumption. rate: the shipped rate in words, with
    the range that it is good for; beyond: why it is taken beyond that, None where it is not.
    """

    value: float | None
    basis: Basis | None
    source: str
    rate: str | None = None
    beyond: str | None = None


@dataclass(frozen=True)
class Estimate:
    """One node that is to do. Figures that do not apply (time on devices of a stage of the CPU) are None.

    wall_s: seconds from start to end. device_s: wall_s times devices. disk_b: bytes published; scratch_b: bytes beside
    them while it runs. memory_b: bytes on one device at the peak; memory_least_b: what it cannot do without.
    """

    name: str
    stage: str
    why: str
    devices: int
    wall_s: Figure
    device_s: Figure | None
    energy_j: Figure | None
    disk_b: Figure
    scratch_b: Figure | None
    memory_b: Figure | None
    memory_least_b: float | None

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


class Estimator:
    """Estimates nodes of a study on one kind of device; `device` None leaves what depends on it unknown."""

    def __init__(
        self,
        graph: Graph,
        states: Mapping[str, State],
        shapes: Shapes,
        earlier: RunHistory,
        device: str | None,
        assumptions: Assumptions,
        device_memory_b: float | None = None,
    ):
        self._graph, self._states, self._shapes, self._earlier = graph, states, shapes, earlier
        self._device, self._assumptions, self._device_memory_b = device, assumptions, device_memory_b

    def estimate(self, state: State) -> Estimate:
        """One node: what it takes to build it, whether it stands or not."""
        node = state.node
        context = self._context(node)
        cost = STAGES[node.stage].cost(context)
        sample = self._earlier.nearest(node.stage, cost, self._device)
        shipped = None if sample else self._shipped(node.stage, context, cost)
        wall_s = self._wall(node, cost, sample, shipped)
        devices = self._devices(cost)
        device_s = _times(wall_s, float(devices)) if devices else None
        # Of the same work: an earlier build of this very node, or of an equal one.
        exact_match = sample if sample and sample.cost == cost else None
        memory_b = self._memory(cost, exact_match, devices) if devices else None
        least_b = cost.memory_least_b
        if least_b is not None and cost.spreads:
            least_b /= devices
        if least_b is None and memory_b is not None:
            least_b = memory_b.value
        return Estimate(
            name=node.name,
            stage=node.stage,
            why=state.changes[0].sentence() if state.changes else "it stands",
            devices=devices,
            wall_s=wall_s,
            device_s=device_s,
            energy_j=self._energy(node, device_s, shipped) if device_s else None,
            disk_b=self._disk(node, cost, sample, shipped),
            scratch_b=_computed(cost, "scratch_b") if cost.devices else None,
            memory_b=memory_b,
            memory_least_b=least_b,
        )

    def _shipped(self, stage: str, context: NodeContext, cost: Cost) -> Reference | Amount | str | None:
        """What the shipped rates say of a node; the reason in words where an amount is not known."""
        try:
            found = None
            if cost.devices and self._device:
                rate = self._assumptions.network_gb_per_s
                found = reference_of(stage, context, cost, self._device, rate * GB if rate else None)
            # Some stages hold a device and work on the processor.
            return found or on_processor(stage, context)
        except Unknown as error:
            return str(error)
        except ValueError as error:
            # An architecture without formulas, or a model that an adjusted study does not describe any more.
            return str(error).splitlines()[0]

    def _devices(self, cost: Cost) -> int:
        """How many devices a node holds: of a model that spreads over them, as many as its bytes need."""
        total_b = cost.memory_least_b or cost.memory_b
        if cost.spreads != "as needed" or total_b is None or self._device_memory_b is None:
            return cost.devices
        return Need(total_b).gpus(self._device_memory_b) or cost.devices

    def _context(self, node: Node) -> NodeContext:
        def parent(name: str) -> Node | None:
            found: Node | None = node
            for part in name.split("."):
                items = found.inputs.get(part, ()) if found else ()
                found = self._states[items[0]].node if items and items[0] in self._states else None
            return found

        def config_of(name: str) -> Mapping[str, Any] | None:
            found = parent(name)
            return self._graph.spec(found.stage, found.id)["config"] if found else None

        def id_of(name: str) -> str | None:
            found = parent(name)
            return found.id if found else None

        config = self._graph.spec(node.stage, node.id)["config"]
        return NodeContext(node.id, config, lambda: self._shapes.of(node), config_of, id_of)

    def _wall(self, node: Node, cost: Cost, sample: Sample | None, shipped: Reference | Amount | str | None) -> Figure:
        if sample and cost.work is not None and sample.cost.work is not None:
            # Perfect scaling over devices, the rate being per device; those that work in turn gain nothing.
            devices = sample.cost.devices if cost.spreads else cost.devices
            work_s = sample.work_s * cost.work / sample.cost.work / max(devices, 1)
            return Figure(sample.overhead_s + work_s, "measured", f"rate of {sample.name}")
        if sample:
            return Figure(sample.overhead_s + sample.work_s / max(sample.cost.devices, 1), "measured", sample.name)
        if cost.flops is not None and self._assumptions.mfu is not None:
            return self._wall_of_flops(node, cost.flops, cost.devices, self._assumptions.mfu)
        if isinstance(shipped, Amount):
            return Figure(shipped.seconds, "reference", shipped.source, shipped.rate)
        if isinstance(shipped, Reference):
            return Figure(shipped.seconds, "reference", shipped.source, shipped.rate, shipped.beyond)
        if cost.protocol_s is not None:
            return Figure(
                cost.protocol_s, "computed", "windows and rests of the protocol; loading and warm-up not counted"
            )
        return Figure(None, None, self._why_no_time(node, cost, shipped))

    def _why_no_time(self, node: Node, cost: Cost, shipped: str | None) -> str:
        if not cost.devices:
            return shipped or cost.reasons.get("work") or f"no {node.stage} of this kind was measured yet"
        if self._device is None:
            return "no device is named: give --device"
        if shipped or cost.reasons.get("work"):
            return shipped or cost.reasons["work"]
        peak = peak_flops_per_s(self._device, self._dtype(node))
        if peak is None:
            return f"the peak of {self._device!r} in {self._dtype(node)} is not in the table of peaks"
        if cost.flops is None:
            return f"no {node.stage} of this kind was measured yet on {self._device}"
        least_h = cost.flops / peak / 3600
        return f"no {node.stage} was measured on {self._device}: give --assume-mfu (at the peak {least_h:,.1f} h)"

    def _wall_of_flops(self, node: Node, flops: float, devices: int, mfu: float) -> Figure:
        if self._device is None:
            return Figure(None, None, "no device is named: give --device")
        peak = peak_flops_per_s(self._device, self._dtype(node))
        if peak is None:
            return Figure(
                None, None, f"the peak of {self._device!r} in {self._dtype(node)} is not in the table of peaks"
            )
        return Figure(flops / (peak * mfu * devices), "assumed", f"{flops:.3g} FLOP at MFU {mfu:g}")

    def _dtype(self, node: Node) -> str:
        return str(self._graph.spec(node.stage, node.id)["config"].get("dtype", "bfloat16"))

    def _energy(self, node: Node, device_s: Figure, shipped: Reference | Amount | str | None) -> Figure:
        if device_s.value is None or device_s.basis is None:
            return device_s
        basis: Basis
        sample = self._earlier.power_w(node.stage, self._device)
        assumed_w = self._assumptions.power_w
        if sample and sample.power_w is not None:
            power_w, basis, source = sample.power_w, "measured", f"power of {sample.name}"
        elif assumed_w is not None:
            power_w, basis, source = assumed_w, "assumed", f"{assumed_w:g} W per device"
        # Power does not follow from peaks: that of another device says nothing.
        elif isinstance(shipped, Reference) and shipped.power_w is not None and shipped.device == self._device:
            power_w, basis = shipped.power_w, "reference"
            source = f"{power_w:.0f} W on {shipped.device}"
        else:
            on_device = f" on {self._device}" if self._device else ""
            why = f"no {node.stage} with a power figure was measured{on_device}: give --assume-power-w"
            return Figure(None, None, why)
        joined = f"{source}; time: {device_s.source}"
        return Figure(
            device_s.value * power_w, weakest([basis, device_s.basis]), joined, device_s.rate, device_s.beyond
        )

    def _disk(self, node: Node, cost: Cost, sample: Sample | None, shipped: Reference | Amount | str | None) -> Figure:
        if cost.disk_b is not None:
            return Figure(cost.disk_b, "computed", "bytes of the weights")
        if sample:
            return Figure(float(sample.disk_b), "measured", sample.name)
        if isinstance(shipped, Amount | Reference) and shipped.disk_b is not None:
            return Figure(shipped.disk_b, "reference", shipped.source)
        if node.stage in RECORDS_B:
            return Figure(RECORDS_B[node.stage], "reference", "an allowance for answers and samples of telemetry")
        why = shipped if isinstance(shipped, str) else None
        return Figure(None, None, cost.reasons.get("disk_b") or why or f"no {node.stage} of this kind was built yet")

    def _memory(self, cost: Cost, exact_match: Sample | None, devices: int) -> Figure:
        if exact_match and exact_match.memory_b is not None:
            return Figure(exact_match.memory_b, "measured", exact_match.name)
        found = _computed(cost, "memory_b")
        return _times(found, 1 / devices) if cost.spreads else found


def _computed(cost: Cost, key: str) -> Figure:
    value = getattr(cost, key)
    if value is not None:
        return Figure(value, "computed", "counted from tensors")
    return Figure(None, None, cost.reasons.get(key, "no formula here gives it"))


def _times(figure: Figure, factor: float) -> Figure:
    return figure if figure.value is None else replace(figure, value=figure.value * factor)


def weakest(bases: Iterable[Basis]) -> Basis:
    """The basis of a figure that is made from several: measured only if all are."""
    return max(bases, key=_ORDER.index)
