"""The section of one table: what it decides, the change against the baseline, and all rows."""

from collections.abc import Collection, Mapping, Sequence

from effllm.report.absolute import absolute_figures, leader
from effllm.report.blocks import Block, Heading, Legend, Section, Text
from effllm.report.figures import count_text, listed
from effllm.report.loads import load_blocks
from effllm.report.rows import View, capital, conditions_told, rows_listing
from effllm.report.scatter import COLOURS
from effllm.report.sliders import sliders_of
from effllm.report.workloads import workload_blocks
from effllm.tables.kinds import TABLES

_MOST_SCOPES = 6
_NUMBERED = "table"
TITLES = {
    name: f"Table {name.removeprefix(_NUMBERED)}: {entry.title}" if name.startswith(_NUMBERED) else capital(entry.title)
    for name, entry in TABLES.items()
}


def table_section(
    view: View,
    text: str,
    path: str,
    decision: Sequence[Block],
    changes: Sequence[Block],
    limits: Mapping[str, float],
    beaten: Collection[int],
) -> Section:
    """The section of a table.

    text: its whole CSV. path: how a command names it. decision, changes: blocks on what it decides and on changes
    against the baseline. limits: budgets by column. beaten: numbers of the rows that another row surely beats.
    """
    name = view.name
    blocks: list[Block] = [Text(_rows_told(view)), *decision]
    sliders = sliders_of(view, f"effllm recommend {path}", limits)
    if sliders:
        blocks.append(sliders)
    blocks.append(_legend(view))
    blocks += changes
    blocks.append(Heading(f"{name}-all", "All rows"))
    scopes = view.scopes()
    for at, scope in enumerate(scopes[:_MOST_SCOPES]):
        if len(scopes) > 1:
            blocks.append(Text(f"{count_text(len(scope.rows), 'row')} with {conditions_told(scopes, scope)}:"))
        measured = [row for row in scope.rows if view.quality.name in row.figures]
        if measured:
            blocks.append(Text(leader(measured, view.quality, view.axis(view.quality))))
        else:
            why = next(row.why_missing(view.quality.name) for row in scope.rows)
            blocks.append(Text(f"{capital(view.quality.text)} was not measured: {why}. The charts show costs alone."))
        blocks.append(absolute_figures(view, scope, f"{name}-{at}", limits, beaten))
    if len(scopes) > _MOST_SCOPES:
        blocks.append(Text(f"{len(scopes) - _MOST_SCOPES} more groups of comparable rows are in the table only."))
    blocks += workload_blocks(view)
    blocks += load_blocks(view)
    blocks.append(rows_listing(view, text))
    return Section(name, TITLES.get(name, name), blocks, table=name)


def _rows_told(view: View) -> str:
    rows = view.table.rows
    counting = sum(1 for row in rows if row.status == "ok")
    told = f"{count_text(len(rows), 'row')}, {counting} of them valid: {listed(list(view.series))} of "
    told += f"{listed(list(view.groups))}. "
    scopes = view.scopes()
    if len(scopes) > 1:
        told += (
            f"They were measured under {len(scopes)} sets of conditions, and only rows under the same conditions are "
            "compared: each set has its own charts."
        )
    return told


def _legend(view: View) -> Legend:
    notes = ["bars: 95 % intervals"]
    if any(row.status != "ok" for row in view.table.rows):
        notes.append("hollow: invalid, never recommended")
    notes += ["dashed: best quality that a cost buys", "faint: surely beaten, or beyond a budget"]
    if len(view.series) > COLOURS:
        notes.append("colours repeat")
    return Legend(view.series, view.groups, notes)
