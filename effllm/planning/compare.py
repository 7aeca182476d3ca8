"""After a run: what was planned beside what it took, by what was known before the run."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effllm.planning.devices import device_of
from effllm.planning.estimate import Assumptions, Basis, Estimator
from effllm.planning.nodes import TABLE, nodes_behind, targets_of
from effllm.planning.run_history import RunHistory
from effllm.planning.shapes import Shapes
from effllm.planning.state import State, provenance, states_of
from effllm.stages import STAGES
from effllm.stages.graph import Graph


@dataclass(frozen=True)
class Pair:
    """One node that was built: seconds planned and taken, from start to end. planned_s is None where nothing was known.

    ratio: taken over planned. source: where the plan's figure comes from, or why there is none.
    """

    name: str
    planned_s: float | None
    took_s: float
    ratio: float | None
    basis: Basis | None
    source: str


@dataclass(frozen=True)
class StageComparison:
    """The nodes of a stage. ok: built; failed: failed cells; to_do: not run, or of another configuration; untimed: of
    ok, those without a record of their time.

    planned_s, took_s: sums over those that were built and planned; ratio: took_s over planned_s. by_basis: of
    planned_s. unplanned: built ones of which the plan knew nothing, and unplanned_s: what they took.
    """

    ok: int
    failed: int
    to_do: int
    untimed: int
    planned_s: float
    took_s: float
    ratio: float | None
    by_basis: dict[str, float]
    unplanned: int
    unplanned_s: float


@dataclass(frozen=True)
class Comparison:
    """What `--json` prints. failed: reasons of failed cells, by name. nodes: the largest deviations first."""

    study: str
    targets: list[str]
    device: str | None
    known_before: str | None
    stages: dict[str, StageComparison]
    total: StageComparison
    failed: dict[str, str]
    nodes: list[Pair]

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def comparison_of(
    graph: Graph,
    targets: Sequence[str],
    device: str | None,
    device_memory_b: float | None,
    assumptions: Assumptions,
    fetch: bool,
) -> Comparison:
    """Compare for the targets, all tables if none is named.

    The plan knows of no artifact behind them, and of none that ended after the first of these had begun.
    """
    wanted = targets_of(graph, targets)
    states = states_of(graph, nodes_behind(graph, wanted), wanted)
    nodes = {name: state for name, state in states.items() if state.node.stage != TABLE}
    built = {name: state for name, state in nodes.items() if _is_of_today(graph, state)}
    first = min((start for state in built.values() if (start := _start(state))), default=None)
    history = RunHistory(graph.results)
    name, _, _ = device_of(history, device, is_described=device_memory_b is not None)
    known = RunHistory(graph.results, without=nodes, before=first)
    estimator = Estimator(graph, states, Shapes(graph, states, assumptions.vocab_size, fetch), known, name, assumptions)
    taken = {sample.name: sample.wall_s for stage in STAGES for sample in history.of(stage)}
    pairs = {
        name: _pair(state, estimator, taken[name]) for name, state in built.items() if name in taken and _is_ok(state)
    }
    failed = {name: _reason(state) for name, state in built.items() if not _is_ok(state)}
    by_stage = {
        stage: _summary([n for n in nodes if nodes[n].node.stage == stage], pairs, failed, built)
        for stage in STAGES
        if any(state.node.stage == stage for state in nodes.values())
    }
    return Comparison(
        study=graph.study.name,
        targets=list(targets) or ["all"],
        device=name,
        known_before=first,
        stages=by_stage,
        total=_summary(list(nodes), pairs, failed, built),
        failed=failed,
        nodes=sorted(pairs.values(), key=_deviation, reverse=True),
    )


def _is_of_today(graph: Graph, state: State) -> bool:
    """Whether it was built from today's slice of the study."""
    if state.artifact is None:
        return False
    return bool(state.artifact.manifest.spec == graph.spec(state.node.stage, state.node.id))


def _is_ok(state: State) -> bool:
    return state.artifact is not None and state.artifact.manifest.status == "ok"


def _reason(state: State) -> str:
    assert state.artifact is not None
    manifest = state.artifact.manifest
    return f"{manifest.status}: {manifest.reason}"


def _start(state: State) -> str | None:
    start = provenance(state.artifact).get("start") if state.artifact else None
    return start if isinstance(start, str) else None


def _pair(state: State, estimator: Estimator, took_s: float) -> Pair:
    planned = estimator.estimate(state).wall_s
    ratio = took_s / planned.value if planned.value else None
    return Pair(state.node.name, planned.value, took_s, ratio, planned.basis, planned.source)


def _summary(
    names: Sequence[str], pairs: Mapping[str, Pair], failed: Mapping[str, str], built: Collection[str]
) -> StageComparison:
    found = [pairs[name] for name in names if name in pairs]
    planned = [pair for pair in found if pair.planned_s is not None]
    by_basis: dict[str, float] = {}
    for pair in planned:
        if pair.basis is not None and pair.planned_s is not None:
            by_basis[pair.basis] = by_basis.get(pair.basis, 0.0) + pair.planned_s
    planned_s, took_s = sum(by_basis.values()), sum(pair.took_s for pair in planned)
    wrong = sum(name in failed for name in names)
    there = sum(name in built for name in names)
    others = [pair for pair in found if pair.planned_s is None]
    return StageComparison(
        ok=there - wrong,
        failed=wrong,
        to_do=len(names) - there,
        untimed=there - wrong - len(found),
        planned_s=planned_s,
        took_s=took_s,
        ratio=took_s / planned_s if planned_s else None,
        by_basis=by_basis,
        unplanned=len(others),
        unplanned_s=sum(pair.took_s for pair in others),
    )


def _deviation(pair: Pair) -> float:
    """Seconds between planned and taken: what a total is off by."""
    return abs(pair.took_s - pair.planned_s) if pair.planned_s is not None else -1.0
