"""Sections on what was audited, compared and found wanting: claims, published values, ranks, failures."""

from effllm.report.blocks import Absent, Block, Cell, Entry, Head, Listing, Section, Text, csv_text
from effllm.report.figures import count_text, listed
from effllm.report.listings import Sheet, listing_of
from effllm.report.run import Run


def sheet_section(run: Run, name: str, heading: str, about: str, target: str) -> Section:
    """A CSV of the results as a section; where it does not exist, the command that makes it."""
    sheet = run.sheets.get(name)
    if sheet is None:
        return Section(
            name, heading, [Absent(f"{about} {run.directory.name} holds no {name}.csv. To have it:", target)]
        )
    return Section(
        name, heading, [Text(f"{about} {_counts(sheet)}"), listing_of(sheet, f"{name}-lines", heading.lower())]
    )


def failures_section(run: Run) -> Section:
    """Rows that do not count, with their reasons, and what the plausibility rules found."""
    rows = [(name, row) for name, table in run.tables.items() for row in table.rows if row.status != "ok"]
    total = sum(len(table.rows) for table in run.tables.values())
    blocks: list[Block] = []
    if rows:
        heads = [Head("row"), Head("table"), Head("status"), Head("reason", is_long=True)]
        entries = [Entry([Cell(row.name), Cell(name), Cell(row.status), Cell(row.reason)]) for name, row in rows]
        lines = [[row.name, name, row.status, row.reason] for name, row in rows]
        blocks.append(
            Text(f"{len(rows)} of {count_text(total, 'row')} do not count. They are shown, never recommended.")
        )
        text = csv_text(["row", "table", "status", "reason"], lines)
        blocks.append(Listing("failed-rows", "rows that do not count", heads, entries, text))
    else:
        blocks.append(Text(f"All {count_text(total, 'row')} are valid."))
    blocks += _doubts(run)
    validity = run.sheets.get("validity")
    if validity is None:
        blocks.append(
            Absent(
                "The plausibility rules' findings are in validity.csv, which was not built. To have it:",
                f"snakemake --profile profiles/local {run.directory.name}/validity.csv",
            )
        )
    elif validity.lines:
        errors = sum(1 for line in validity.lines if line.get("severity") == "error")
        blocks.append(
            Text(
                f"The plausibility rules found {count_text(errors, 'error')} and "
                f"{count_text(len(validity.lines) - errors, 'warning')}."
            )
        )
        blocks.append(listing_of(validity, "validity-lines", "findings of the plausibility rules"))
    else:
        blocks.append(Text("The plausibility rules found nothing in any artifact."))
    return Section("failures", "Failures and doubts", blocks)


def _doubts(run: Run) -> list[Block]:
    """Warnings, each once with the rows that have it."""
    by_doubt: dict[str, list[str]] = {}
    for name, table in run.tables.items():
        for row in table.rows:
            for doubt in (row.cells.get("warnings") or "").split("; "):
                if doubt:
                    by_doubt.setdefault(doubt, []).append(f"{row.name} ({name})")
    if not by_doubt:
        return []
    heads = [Head("doubt", is_long=True), Head("rows", is_number=True), Head("which", is_long=True)]
    entries = [
        Entry([Cell(doubt), Cell(str(len(rows)), order=len(rows)), Cell(listed(rows, most=12))])
        for doubt, rows in by_doubt.items()
    ]
    text = csv_text(["doubt", "row"], [[doubt, row] for doubt, rows in by_doubt.items() for row in rows])
    return [
        Text("Doubts that do not make a row invalid:"),
        Listing("doubts", "doubts about rows that count", heads, entries, text),
    ]


def _counts(sheet: Sheet) -> str:
    """How many lines have which verdict, where there is such a column."""
    column = next((name for name in ("verdict", "comparable") if name in sheet.header), None)
    if column is None:
        return f"{count_text(len(sheet.lines), 'line')}."
    counts: dict[str, int] = {}
    for line in sheet.lines:
        counts[line[column]] = counts.get(line[column], 0) + 1
    return (
        f"{count_text(len(sheet.lines), 'line')}: "
        + ", ".join(f"{name or 'empty'} {n}" for name, n in counts.items())
        + "."
    )
