"""A study that fits a budget: what is cut, in which order, until the plan's own estimate is within it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effllm.errors import UserError
from effllm.init.recipes.recipe import Draft, Drafts
from effllm.init.size import Cut, Size, TooLargeError
from effllm.init.wishes import Wishes
from effllm.planning.estimate import Assumptions
from effllm.planning.plan import Plan, plan_of
from effllm.planning.show_plan import duration
from effllm.stages.graph import Graph
from effllm.study import Study

_HOUR_S = 3600.0
_MOST_NAMES = 3
_OF_A_PROCESSOR = "nobody has measured this machine yet"


@dataclass(frozen=True)
class Fitted:
    """A draft within the budget. cut: what differs from the study without a budget, a sentence each."""

    draft: Draft
    plan: Plan
    cut: Sequence[str]

    def sentence(self, wishes: Wishes) -> str:
        """What it was fitted to, and what it takes by the plan."""
        device = self.plan.device or ("this processor" if wishes.on_cpu else "a GPU of no name")
        budget = f"{wishes.hours:g} h on {wishes.gpus} x {device}"
        unknown = sum(node.wall_s.value is None for node in self.plan.nodes)
        if unknown and not self.plan.wall_least_s:
            return f"Not fitted to {budget}: effllm plan knows the time of none of its {unknown} nodes."
        taken = duration(self.plan.wall_least_s or 0.0)
        if unknown:
            return f"Fitted to {budget}: at least {taken} by effllm plan, and {unknown} nodes of unknown time."
        return f"Fitted to {budget}: {taken} by effllm plan."

    def unknown(self, wishes: Wishes) -> list[str]:
        """What the plan does not count, by reason, and what would make it known."""
        reasons: dict[str, list[str]] = {}
        for node in self.plan.nodes:
            if node.wall_s.value is None:
                reason = _OF_A_PROCESSOR if wishes.on_cpu and node.devices else node.wall_s.source
                reasons.setdefault(reason, []).append(node.name)
        if not reasons:
            return []
        count = sum(len(names) for names in reasons.values())
        lines = [f"Not counted, because their time is unknown: {count} of {len(self.plan.nodes)} nodes"]
        for reason, names in reasons.items():
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            lines.append(f"  {', '.join(names[:_MOST_NAMES])}{more}: {reason}")
        return [
            *lines,
            "  What was built below --results is counted at its measured rate: run this again with --force.",
        ]


def fit(wishes: Wishes, drafts: Drafts, study_of: Callable[[Draft], Study]) -> Fitted:
    """The most of the study that the plan puts within the budget; `UserError` where even the least is not."""
    assert wishes.hours is not None
    budget_s = wishes.hours * _HOUR_S

    def plan(size: Size) -> Plan:
        draft = drafts.at(size)
        return plan_of(
            Graph(study_of(draft), str(wishes.results)),
            draft.tables,
            gpus=wishes.gpus,
            device=None if wishes.on_cpu else wishes.device,
            assumptions=Assumptions(mfu=wishes.assume_mfu),
        )

    def fits(size: Size) -> bool:
        found = plan(size)
        return not found.wont_fit and found.wall_least_s is not None and found.wall_least_s <= budget_s

    def grows(size: Size) -> bool:
        # What is unknown counts as nothing, and a larger study may have more of it.
        try:
            found = plan(size)
        except TooLargeError:
            return False
        is_known = all(node.wall_s.value is not None for node in found.nodes if node.devices)
        return is_known and fits(size) and not found.risks

    size = Size()
    if fits(size):
        for cut in reversed(drafts.cuts):
            larger = (_with(size, cut, value) for value in cut.larger)
            size = next((candidate for candidate in larger if grows(candidate)), size)
    else:
        for cut in drafts.cuts:
            size = _with(size, cut, _largest(cut, cut.smaller, size, fits))
            if fits(size):
                break
        else:
            raise _too_long(wishes, plan(size), budget_s)
        # Steps are coarse: what the last one leaves goes back, first to what harms most.
        for cut in reversed(drafts.cuts):
            size = _with(size, cut, _largest(cut, (cut.usual, *cut.smaller), size, fits))
    changed = [cut for cut in drafts.cuts if getattr(size, cut.key) not in (None, cut.usual)]
    said = [f"{cut.said(getattr(size, cut.key))} instead of {_plain(cut.usual)}" for cut in changed]
    return Fitted(drafts.at(size), plan(size), said)


def _plain(value: Any) -> str:
    return "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _with(size: Size, cut: Cut, value: Any) -> Size:
    return replace(size, **{cut.key: value})


def _largest(cut: Cut, values: Sequence[Any], size: Size, fits: Callable[[Size], bool]) -> Any:
    """The first of the values that fits; the last one where none does. Each costs less than the one before."""
    present = getattr(size, cut.key)
    # What fits now bounds the search.
    last = values.index(present) if present in values else len(values) - 1
    first = 0
    while first < last:
        middle = (first + last) // 2
        if fits(_with(size, cut, values[middle])):
            last = middle
        else:
            first = middle + 1
    return values[last]


def _too_long(wishes: Wishes, plan: Plan, budget_s: float) -> UserError:
    if plan.wont_fit:
        name, why = next(iter(plan.wont_fit.items()))
        return UserError(f"{name} {why}: name a device of more memory, or a smaller model.")
    assert plan.wall_least_s is not None
    taken, over = duration(plan.wall_least_s), duration(plan.wall_least_s - budget_s)
    least = "at least " if plan.wall_s.value is None else ""
    return UserError(
        f"--hours {wishes.hours:g}: the smallest version of the study takes {least}{taken} on {wishes.gpus} x "
        f"{plan.device or 'an unknown device'}, {over} too many: give more hours or --gpus, or ask for less."
    )
