"""Planned beside taken, for a terminal."""

from typing import TYPE_CHECKING

from effllm.planning.show_plan import duration

if TYPE_CHECKING:
    from effllm.planning.compare import Comparison, Pair, StageComparison

_MOST_NODES = 12


def text_of(compared: "Comparison") -> str:
    """A row for each stage, failed cells, and the nodes that took longest away from the plan."""
    lines = [f"study {compared.study}: {', '.join(compared.targets)}"]
    if not compared.total.ok and not compared.total.failed:
        return "\n".join([*lines, f"Nothing was run yet: {compared.total.to_do} nodes are to do, none to compare."])
    lines.append(f"device: {compared.device or 'unknown: give --device'}")
    lines.append(
        f"planned by what was known before {compared.known_before or 'the run'}, without these nodes' own times"
    )
    lines += ["", f"{'stage':13}{'ok':>5}{'failed':>8}{'to do':>7}{'planned':>11}{'took':>11}{'ratio':>8}  basis"]
    for stage, row in compared.stages.items():
        lines.append(_row(stage, row))
    lines.append(_row("all", compared.total))
    if compared.total.unplanned:
        lines += [
            "",
            f"Not planned: {compared.total.unplanned} nodes, which took {duration(compared.total.unplanned_s)}",
        ]
        reasons = dict.fromkeys(pair.source for pair in compared.nodes if pair.planned_s is None)
        lines += [f"  {reason}" for reason in reasons]
    if compared.total.untimed:
        lines += ["", f"No record of their time: {compared.total.untimed} nodes"]
    if compared.failed:
        lines += ["", f"Failed: {len(compared.failed)} nodes, not compared"]
        lines += [f"  {name} {reason}" for name, reason in compared.failed.items()]
    largest = [pair for pair in compared.nodes if pair.ratio is not None][:_MOST_NODES]
    if largest:
        lines += ["", "Furthest from the plan, in seconds"]
        lines += [_node(pair) for pair in largest]
    return "\n".join(lines)


def _row(name: str, row: "StageComparison") -> str:
    counts = f"{name:13}{row.ok:5}{row.failed:8}{row.to_do:7}"
    if row.ratio is None:
        return f"{counts}{'':>11}{duration(row.unplanned_s) if row.unplanned else '':>11}"
    bases = ", ".join(f"{basis} {duration(seconds)}" for basis, seconds in row.by_basis.items())
    return f"{counts}{duration(row.planned_s):>11}{duration(row.took_s):>11}{row.ratio:8.2f}  {bases}"


def _node(pair: "Pair") -> str:
    assert pair.planned_s is not None
    return (
        f"  {pair.name}: planned {duration(pair.planned_s)}, took {duration(pair.took_s)}, {pair.ratio:.2f} times "
        f"({pair.basis}: {pair.source})"
    )
