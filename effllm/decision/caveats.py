"""What an answer does not rest on, and what would have to be known to be surer of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from effllm.decision.choice import Choice, Field
from effllm.decision.dominance import members
from effllm.decision.numbers import lost, per_cent
from effllm.decision.query import CARD, Query
from effllm.decision.rows import Row, Table
from effllm.tables.paired import pairs_of

_SEEDS = "seeds"
_STATED = {CARD: "the card", "software": "the library versions"}


@dataclass(frozen=True)
class Caveat:
    """One thing to mind. code: the same for the same thing in every table."""

    code: str
    text: str


def caveats_of_table(table: Table, query: Query, counting: Sequence[Row]) -> Iterator[Caveat]:
    """What holds for every group of rows."""
    single = [row for row in counting if ", " not in (row.cells.get(_SEEDS) or "")]
    if single:
        rows = (
            "one run a row" if len(single) == len(counting) else f"{len(single)} of {len(counting)} rows are of one run"
        )
        yield Caveat(
            "one_run",
            f"{rows}: the spread between runs is unknown, so costs that differ by {per_cent(query.margin)} or less "
            "count as equal.",
        )
    absent = [text for name, text in _STATED.items() if name in table.description.scope and name not in table.columns]
    if absent:
        yield Caveat(
            "conditions_not_stated",
            f"the table is of an earlier version and does not state {' and '.join(absent)}: rows may differ in it.",
        )
    if query.across_cards:
        yield Caveat(
            "several_cards",
            f"rows of several cards of one kind are compared; such cards were seen to differ by "
            f"{per_cent(0.05)}, and the margin is {per_cent(query.margin)}.",
        )
    if query.workload:
        own = [
            limit.column
            for limit in query.limits
            if limit.column not in table.description.of_any_workload
            and table.columns[limit.column].role == "cost"
            and not limit.column.startswith(f"{query.workload}_")
        ]
        if own:
            yield Caveat(
                "other_workload",
                f"{', '.join(own)}: of the table's own workload, since {query.workload} has no such column.",
            )


def caveats_of_scope(decided: Field, choice: Choice, names: Mapping[str, str]) -> Iterator[Caveat]:
    """What holds for one group of rows."""
    yield from _of_quality(decided, choice, names)
    for column in decided.unmeasured:
        text = decided.table.columns[column].text
        reason = decided.rows[0].why_missing(column)
        yield Caveat("not_measured", f"{text} was not measured ({reason}): nothing here rests on it.")
    exact = [
        limit.column
        for limit in decided.rules.limits
        if any((figure := row.figures.get(limit.column)) and figure.low is None for row in decided.rows)
    ]
    if exact:
        yield Caveat("no_interval", f"{', '.join(exact)}: without an interval, so figures count as exact.")
    warned: dict[str, list[str]] = {}
    for i in members(choice.chosen):
        if warnings := decided.rows[i].cells.get("warnings"):
            warned.setdefault(warnings, []).append(names[decided.rows[i].name])
    for warnings, rows in warned.items():
        yield Caveat("warning", f"{', '.join(rows)}: {warnings}.")


def _of_quality(decided: Field, choice: Choice, names: Mapping[str, str]) -> Iterator[Caveat]:
    if decided.rules.quality is None:
        return
    column = decided.table.columns[decided.rules.quality]
    if decided.quality is None:
        reason = decided.rows[0].why_missing(column.name) if decided.rows else ""
        yield Caveat("no_quality", f"{column.text} was not measured ({reason}): nothing is known of quality.")
        return
    if choice.best is None:
        return
    losses = {i: found for i in members(choice.chosen) if i != choice.best and (found := decided.loss(i, choice.best))}
    unsure = {i: found for i, found in losses.items() if found.high > decided.rules.quality_loss}
    if unsure:
        worst = max(unsure, key=lambda i: unsure[i].high)
        yield Caveat(
            "quality_unresolved",
            f"{column.text}: {names[decided.rows[worst].name]} is not told apart from "
            f"{names[decided.rows[choice.best].name]}, and may be worse by up to {lost(unsure[worst].high, column)}.",
        )
    if any(not found.paired for found in losses.values()):
        yield Caveat(
            "unpaired",
            f"{column.text} was compared by the rows' own intervals"
            + (
                ": pairs are of a row and the baseline of its own model."
                if decided.rules.pairs
                else f"; paired differences ({pairs_of(decided.table.path.stem)}.csv) are surer."
            ),
        )
