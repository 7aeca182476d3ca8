"""A plan for a terminal."""

from typing import TYPE_CHECKING

from effllm.planning.run_history import GB

if TYPE_CHECKING:
    from effllm.planning.plan import Plan, Total

_MOST_NODES = 8


def text_of(plan: "Plan") -> str:
    """What a person wants to know, and for every figure where it comes from."""
    memory = f", {plan.device_memory_b / GB:.0f} GB" if plan.device_memory_b else ", memory unknown"
    device = f"{plan.device}{memory} ({plan.device_source})" if plan.device else f"unknown ({plan.device_source})"
    lines = [f"study {plan.study}: {', '.join(plan.targets)}", f"device: {device}; {plan.gpus} of them", ""]
    lines.append(f"{'stage':12}{'nodes':>7}{'cached':>8}{'absent':>8}{'to do':>7}")
    for stage, row in plan.stages.items():
        lines.append(f"{stage:12}{row['nodes']:7}{row['cached']:8}{row['absent']:8}{row['to_do']:7}")
    lines.append("")
    if not plan.nodes:
        lines.append("Nothing has to be computed; tables are assembled in seconds.")
        return "\n".join(lines)
    lines += _total("device-hours", plan.device_hours, 1.0, "h")
    wall = plan.wall_s
    if wall.value is not None:
        lines.append(f"{'wall time':14}{duration(wall.value)} ({wall.basis}: {wall.source})")
    else:
        least = f"at least {duration(plan.wall_least_s)}: " if plan.wall_least_s else ""
        lines.append(f"{'wall time':14}{least}{wall.source}")
    lines += _total("energy", plan.energy_j, 3.6e6, "kWh")
    lines += _total("disk", plan.disk_b, GB, "GB")
    if plan.download_b.nodes or plan.download_b.unknown:
        lines += _total("download", plan.download_b, GB, "GB")
    lines += _scratch(plan)
    lines += _memory(plan)
    if plan.wont_fit:
        lines += ["", f"Cannot fit: {len(plan.wont_fit)} nodes"]
        lines += [f"  {name} {sentence}" for name, sentence in plan.wont_fit.items()]
    if plan.risks:
        lines += ["", f"May not fit: {len(plan.risks)} nodes"]
        lines += [f"  {name} {sentence}" for name, sentence in plan.risks.items()]
    lines += _rates(plan)
    lines += _unknown(plan)
    given = [f"{key} {value:g}" for key, value in vars(plan.assumptions).items() if value is not None]
    lines += ["", f"Assumed: {', '.join(given) if given else 'nothing'}"]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _total(name: str, total: "Total", unit: float, symbol: str) -> list[str]:
    if not total.nodes and total.unknown:
        return [f"{name:14}unknown for all {sum(total.unknown.values())} nodes"]
    origin = ", ".join(f"{basis} {value / unit:,.3g}" for basis, value in total.by_basis.items())
    least = "" if total.value is not None else "at least "
    missing = f"; unknown for {sum(total.unknown.values())} more nodes" if total.unknown else ""
    return [f"{name:14}{least}{total.known / unit:,.3g} {symbol} over {total.nodes} nodes ({origin}{missing})"]


def _scratch(plan: "Plan") -> list[str]:
    largest = max((n.scratch_b.value for n in plan.nodes if n.scratch_b and n.scratch_b.value), default=None)
    return [f"{'scratch':14}up to {largest / GB:,.3g} GB per node while it runs (computed)"] if largest else []


def _rates(plan: "Plan") -> list[str]:
    """The shipped rates that times are by, each with its range, and how much of the time is beyond that."""
    hours: dict[tuple[str, str], list[float]] = {}
    beyond: dict[tuple[str, str], list[str]] = {}
    for node in plan.nodes:
        figure = node.wall_s
        if figure.rate is None or figure.value is None:
            continue
        key = (node.stage, figure.rate)
        hours.setdefault(key, []).append(figure.value / 3600)
        if figure.beyond:
            beyond.setdefault(key, []).append(figure.beyond)
    if not hours:
        return []
    lines = ["", "Shipped rates that times are by, and the hours of each"]
    for (stage, rate), found in hours.items():
        lines.append(f"  {sum(found):8,.2f} h  {stage}, {len(found)} nodes: {rate}")
        if reasons := beyond.get((stage, rate)):
            lines.append(f"{'':13}BEYOND IT, {len(reasons)} nodes: {' | '.join(dict.fromkeys(reasons))}")
    return lines


def _memory(plan: "Plan") -> list[str]:
    known = [
        (memory.value, memory.basis, node.name)
        for node in plan.nodes
        if (memory := node.memory_b) and memory.value is not None
    ]
    if not known:
        return []
    lines = ["", "Largest peaks of device memory"]
    for memory_b, basis, name in sorted(known, key=lambda entry: -entry[0])[:_MOST_NODES]:
        share = f"{memory_b / plan.device_memory_b:6.0%}" if plan.device_memory_b else ""
        lines.append(f"  {memory_b / GB:9.3g} GB {share}  {name} ({basis})")
    return lines


def _unknown(plan: "Plan") -> list[str]:
    reasons: dict[str, set[str]] = {}
    for name, total in (
        ("device-hours", plan.device_hours),
        ("energy", plan.energy_j),
        ("disk", plan.disk_b),
        ("download", plan.download_b),
    ):
        for reason in total.unknown:
            reasons.setdefault(reason, set()).add(name)
    for node in plan.nodes:
        if node.memory_b and node.memory_b.value is None:
            reasons.setdefault(node.memory_b.source, set()).add("memory")
    lines = ["", "Not known"] if reasons else []
    return lines + [f"  {', '.join(sorted(figures))}: {reason}" for reason, figures in reasons.items()]
