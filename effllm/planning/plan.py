"""`effllm plan`: what a target costs before anything runs, and which nodes cannot fit."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effllm.command_line import number, whole_number
from effllm.errors import UserError, reason_of
from effllm.planning.compare import comparison_of
from effllm.planning.devices import device_of
from effllm.planning.estimate import NOTHING_ASSUMED, Assumptions, Estimate, Estimator, Figure, weakest
from effllm.planning.needs import address_of, needs_of, uses_network
from effllm.planning.nodes import TABLE, Node, nodes_behind, targets_of
from effllm.planning.options import add_study, graph_of
from effllm.planning.run_history import GB, RunHistory
from effllm.planning.schedule import Task, makespan
from effllm.planning.shapes import Shapes
from effllm.planning.show_comparison import text_of as compared_text
from effllm.planning.show_plan import text_of
from effllm.planning.state import State, states_of
from effllm.stages import STAGES
from effllm.stages.cost import Unknown
from effllm.stages.graph import Graph
from effllm.stages.weights import stored_b


@dataclass(frozen=True)
class Total:
    """A sum over the nodes that are to do.

    value: None as long as a node's part is unknown; known: the sum of what is known; nodes: how many have a known
    part; by_basis: the known sum by origin; unknown: how many nodes lack theirs, by reason.
    """

    value: float | None
    known: float
    nodes: int
    by_basis: dict[str, float]
    unknown: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """What `--json` prints. Seconds, joules and bytes; device_hours are hours of one device each.

    stages: nodes, of them cached, absent but not needed, and to do, by stage. wall_least_s: the wall time if what is
    unknown took none, None if the graph cannot run on so many devices. download_b: what the hub's cache lacks.
    wont_fit: nodes that cannot run on the device, with a sentence; risks: nodes that fit unless an input is as long as
    the protocol admits.
    """

    study: str
    targets: list[str]
    device: str | None
    device_source: str
    device_memory_b: float | None
    gpus: int
    assumptions: Assumptions
    stages: dict[str, dict[str, int]]
    device_hours: Total
    wall_s: Figure
    wall_least_s: float | None
    energy_j: Total
    disk_b: Total
    download_b: Total
    wont_fit: dict[str, str]
    risks: dict[str, str]
    nodes: list[Estimate]

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def register(command: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs."""
    command.add_argument("targets", nargs="*", metavar="TARGET", help="results/table9.csv, table9, quantize/ID, ...")
    add_study(command)
    command.add_argument(
        "--gpus", type=whole_number("--gpus", "1"), default=1, help="devices to run on (default: %(default)s)"
    )
    command.add_argument("--device", help="name of the device as NVML reports it; that of earlier runs if left out")
    command.add_argument(
        "--device-memory-gb",
        type=number("--device-memory-gb", "80"),
        help="its memory, for a device that is in no table",
    )
    command.add_argument(
        "--assume-mfu",
        type=number("--assume-mfu", "0.4"),
        help="share of the peak that training reaches, such as 0.4",
    )
    command.add_argument(
        "--assume-power-w",
        type=number("--assume-power-w", "600"),
        help="power of one device at work",
    )
    command.add_argument(
        "--assume-vocab-size",
        type=whole_number("--assume-vocab-size", "32000"),
        help="size of tokenizers that are not built yet",
    )
    command.add_argument(
        "--assume-network-gb-per-s",
        type=number("--assume-network-gb-per-s", "50"),
        help="line rate of the network between hosts, in GB/s for each device",
    )
    command.add_argument("--fetch", action="store_true", help="ask the hub for small files and the sizes of all")
    command.add_argument(
        "--compare", action="store_true", help="after a run: what was planned beside what it took, by stage"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, 1 if a node cannot fit; or the comparison with what was run."""
    _check(arguments)
    assumptions = Assumptions(
        arguments.assume_mfu, arguments.assume_power_w, arguments.assume_vocab_size, arguments.assume_network_gb_per_s
    )
    memory_b = arguments.device_memory_gb * GB if arguments.device_memory_gb else None
    graph = graph_of(arguments)
    if arguments.compare:
        compared = comparison_of(graph, arguments.targets, arguments.device, memory_b, assumptions, arguments.fetch)
        print(json.dumps(compared.plain(), indent=1) if arguments.json else compared_text(compared))
        return 0
    plan = plan_of(
        graph,
        arguments.targets,
        gpus=arguments.gpus,
        device=arguments.device,
        device_memory_b=memory_b,
        assumptions=assumptions,
        fetch=arguments.fetch,
    )
    print(json.dumps(plan.plain(), indent=1) if arguments.json else text_of(plan))
    return 1 if plan.wont_fit else 0


def plan_of(
    graph: Graph,
    targets: Sequence[str] = (),
    *,
    gpus: int = 1,
    device: str | None = None,
    device_memory_b: float | None = None,
    assumptions: Assumptions = NOTHING_ASSUMED,
    fetch: bool = False,
) -> Plan:
    """The plan for the targets, all tables if none is named."""
    wanted = targets_of(graph, targets)
    states = states_of(graph, nodes_behind(graph, wanted), wanted)
    earlier = RunHistory(graph.results)
    device, source, found_b = device_of(earlier, device, is_described=device_memory_b is not None)
    device_memory_b = device_memory_b or found_b
    shapes = Shapes(graph, states, assumptions.vocab_size, fetch)
    estimator = Estimator(graph, states, shapes, earlier, device, assumptions, device_memory_b)
    pending = {name: state for name, state in states.items() if not state.up_to_date}
    nodes = [estimator.estimate(state) for state in pending.values() if state.node.stage != TABLE]
    wont_fit = dict(_wont_fit(nodes, gpus, device, device_memory_b))
    risks = {name: text for name, text in _risks(nodes, device, device_memory_b) if name not in wont_fit}
    wall_s, wall_least_s = _wall(nodes, pending, gpus)
    return Plan(
        study=graph.study.name,
        targets=list(targets) or ["all"],
        device=device,
        device_source=source,
        device_memory_b=device_memory_b,
        gpus=gpus,
        assumptions=assumptions,
        stages=_stages(states),
        device_hours=_hours(_total(node.device_s for node in nodes)),
        wall_s=wall_s,
        wall_least_s=wall_least_s,
        energy_j=_total(node.energy_j for node in nodes),
        disk_b=_total(node.disk_b for node in nodes),
        download_b=_total(_download(graph, shapes, state.node, fetch) for state in pending.values()),
        wont_fit=wont_fit,
        risks=risks,
        nodes=nodes,
    )


def _check(arguments: argparse.Namespace) -> None:
    limits = {"gpus": None, "device_memory_gb": None, "assume_mfu": 1, "assume_power_w": None}
    for key, most in (limits | {"assume_network_gb_per_s": None}).items():
        value = getattr(arguments, key)
        # NaN is in no range.
        if value is not None and not (0 < value <= (most or sys.float_info.max)):
            limit = f"above 0 and at most {most}" if most else "above 0 and finite"
            raise UserError(f"--{key.replace('_', '-')} {value}: the value must be {limit}.")


def _stages(states: Mapping[str, State]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for state in states.values():
        row = counts.setdefault(state.node.stage, {"nodes": 0, "cached": 0, "absent": 0, "to_do": 0})
        row["nodes"] += 1
        row["absent" if state.is_absent else "cached" if state.up_to_date else "to_do"] += 1
    order = [*STAGES, TABLE]
    return {stage: counts[stage] for stage in sorted(counts, key=order.index)}


def _download(graph: Graph, shapes: Shapes, node: Node, fetch: bool) -> Figure | None:
    """Bytes that a node needs of the network and the hub's cache does not have; None for one that needs none."""
    if node.stage == TABLE or not uses_network(graph, node):
        return None
    if not fetch:
        return _weights_of_hub(shapes, node) or Figure(None, None, "sizes are the hub's to tell: give --fetch")
    try:
        address = address_of(graph, node)
        if address is not None:
            size_b = 0 if address.cached() else address.size_b()
            if size_b is None:
                return Figure(None, None, f"{address.url} does not say its size")
            return Figure(float(size_b), "computed", f"the length that {address.url} states")
        needs = needs_of(graph, node)
    except UserError as error:
        return Figure(None, None, reason_of(error))
    missing = [file.size for need in needs for file in need.files if need.repository.cached(file) is None]
    at_most = ", all of them, of which a token budget may take fewer" if any(need.is_limit for need in needs) else ""
    return Figure(float(sum(missing)), "computed", f"the hub's list of files{at_most}")


def _weights_of_hub(shapes: Shapes, node: Node) -> Figure | None:
    """What a model of the hub takes at least, where its shape is known; None for anything else."""
    if node.stage != "model":
        return None
    try:
        stored = stored_b(shapes.of(node))
    except (Unknown, ValueError):
        return None
    return Figure(stored["disk_b"], "computed", "weights of the model's shape") if "disk_b" in stored else None


def _total(figures: Iterable[Figure | None]) -> Total:
    applying = [figure for figure in figures if figure is not None]
    known = [(figure.value, figure.basis) for figure in applying if figure.value is not None and figure.basis]
    unknown = Counter(figure.source for figure in applying if figure.value is None)
    by_basis: dict[str, float] = {}
    for value, basis in known:
        by_basis[basis] = by_basis.get(basis, 0.0) + value
    total = sum(value for value, _ in known)
    return Total(None if unknown else total, total, len(known), by_basis, dict(unknown))


def _hours(total: Total) -> Total:
    by_basis = {basis: seconds / 3600 for basis, seconds in total.by_basis.items()}
    value = None if total.value is None else total.value / 3600
    return Total(value, total.known / 3600, total.nodes, by_basis, total.unknown)


def _wall(nodes: Sequence[Estimate], pending: Mapping[str, State], gpus: int) -> tuple[Figure, float | None]:
    """Wall time of the graph on `gpus` devices, None while the time of a node is unknown; and the least it takes."""
    tasks = {
        node.name: Task(
            node.wall_s.value or 0.0,
            node.devices,
            tuple(parent for parent in pending[node.name].node.parents if parent in pending),
        )
        for node in nodes
    }
    try:
        seconds = makespan(tasks, gpus)
    except ValueError as error:
        return Figure(None, None, f"{error}: give --gpus"), None
    unknown = sum(node.wall_s.value is None for node in nodes)
    if unknown:
        return Figure(None, None, f"the time of {unknown} of {len(nodes)} nodes is unknown"), seconds
    bases = [node.wall_s.basis for node in nodes if node.wall_s.basis]
    basis = weakest(bases or ["computed"])
    return Figure(seconds, basis, "list scheduling of the graph; stages of the CPU run beside"), seconds


def _wont_fit(
    nodes: Sequence[Estimate], gpus: int, device: str | None, device_memory_b: float | None
) -> Iterable[tuple[str, str]]:
    for node in nodes:
        if node.devices > gpus:
            yield node.name, f"needs {node.devices} devices, and there are {gpus}: give --gpus {node.devices} or more"
        least = node.memory_least_b
        if least is not None and device_memory_b is not None and least > device_memory_b:
            yield (
                node.name,
                f"needs {_memory(least)} of device memory or more, and {device} has {_memory(device_memory_b)}",
            )


def _risks(nodes: Sequence[Estimate], device: str | None, device_memory_b: float | None) -> Iterable[tuple[str, str]]:
    for node in nodes:
        peak = node.memory_b.value if node.memory_b else None
        if peak is not None and device_memory_b is not None and peak > device_memory_b:
            yield (
                node.name,
                f"needs {_memory(peak)} at the longest input, and {device} has {_memory(device_memory_b)}: it may end "
                "as oom",
            )


def _memory(size_b: float) -> str:
    return f"{size_b / GB:.0f} GB"
