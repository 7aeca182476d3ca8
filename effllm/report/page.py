"""The page of one results directory."""

from collections.abc import Mapping
from typing import Any

from effllm.report.blocks import Absent, Answer, Block, Page, Section
from effllm.report.changes import change_blocks, read_changes
from effllm.report.decisions import answer_of, beaten_rows, decide, decision_blocks, limits_of
from effllm.report.findings import failures_section, sheet_section
from effllm.report.listings import Sheet
from effllm.report.provenance import facts_of, plan_section, provenance_section
from effllm.report.rows import View, view_of
from effllm.report.run import Run
from effllm.report.samples import samples_section
from effllm.report.tables import TITLES, table_section
from effllm.tables.paired import PAIRS, pairs_of

_SCALING = (
    "scaling",
    "Scaling laws",
    "The law of each technique over its sizes and token counts, and what it says of a larger model.",
)
_AUDITS = (
    ("claims", "Claims", "What the published study claims, held against these rows."),
    ("comparison", "Published values", "Published values beside these, as ratios within a table: machines differ."),
    ("crossover", "Crossovers", "From which model size on a precision saves time, energy or memory."),
    (
        "ranks",
        "Ranks",
        "Ranks with their ties, and the scores of equations 10 to 12. No answer on this page rests on them.",
    ),
)


def page_of(run: Run, budgets: Mapping[str, Mapping[str, Any]]) -> Page:
    """Answers first, then the tables, what was audited, what failed, and where it comes from.

    budgets: those of the study by table, each as `effllm.study.budgets.Budget` has them.
    """
    answers: list[Answer] = []
    sections: list[Section] = []
    for name, table in run.tables.items():
        view = view_of(name, table)
        path = f"{run.directory.name}/{name}.csv"
        found = decide(table, budgets.get(name, {}), is_paired=_pairs(run, name) is not None)
        decision, changes = decision_blocks(found, name), _changes(run, view)
        section = table_section(view, run.texts[name], path, decision, changes, limits_of(found), beaten_rows(found))
        sections.append(section)
        answers.append(answer_of(found, TITLES[name], name))
    if samples := samples_section(run):
        sections.append(samples)
    # A study may have no section `scaling`, or no table of precisions, and then nothing is missing.
    audits = [_SCALING, *_AUDITS] if _SCALING[0] in run.sheets else list(_AUDITS)
    audits = [audit for audit in audits if audit[0] != "crossover" or "table9" in run.tables]
    sections += [sheet_section(run, name, heading, about, command_of(run, name)) for name, heading, about in audits]
    sections += [failures_section(run), plan_section(run), provenance_section(run)]
    facts = dict(facts_of(run))
    subtitle = [text for key in ("Devices", "Built") if (text := facts.get(key))]
    return Page(f"{run.name}: what efficiency costs", subtitle, answers, sections, run.directory.name)


def command_of(run: Run, name: str) -> str:
    """The command that builds a CSV of the results."""
    return f"snakemake --profile profiles/local {run.directory.name}/{name}.csv"


def _changes(run: Run, view: View) -> list[Block]:
    if sheet := _pairs(run, view.name):
        return change_blocks(view, read_changes(sheet, view.name))
    name = pairs_of(view.name)
    missing = f"Changes against the baseline are in {name}.csv, which was not built. To have it:"
    return [Absent(missing, command_of(run, name))]


def _pairs(run: Run, table: str) -> Sheet | None:
    """The pairs of a table, by themselves or among those of all tables."""
    return run.sheets.get(pairs_of(table)) or run.sheets.get(PAIRS)
