"""Sections on how the figures came to be: hardware, software, commits, digests; time planned and time taken."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from effllm.report.blocks import Absent, Block, Cell, Entry, Facts, Head, Listing, Section, Text, csv_text
from effllm.report.figures import NOT_MEASURED, count_text, figure_text, listed
from effllm.report.run import PLAN, Made, Run

_SHORT_DIGEST = 12
_MINUTE_S = 60.0
_HOUR_S = 3600.0


def provenance_section(run: Run, id: str = "provenance") -> Section:
    """Hardware, software, commits, time and digests of everything behind the tables."""
    blocks: list[Block] = [Facts(facts_of(run))]
    if run.made:
        lost = [made.name for made in run.made if made.provenance is None]
        if lost:
            blocks.append(Text(f"How {listed(lost)} came to be is not known: provenance.json was lost.", is_note=True))
        blocks.append(_digests(run, id))
    else:
        blocks.append(
            Absent(
                f"{run.directory.name} holds tables without the record of what they were assembled from: commits and "
                "digests are not known here. A results directory of the workflow holds it, in .tables."
            )
        )
    return Section(id, "Provenance", blocks)


def facts_of(run: Run) -> list[tuple[str, str]]:
    """Names and values, the same for every row or with how many artifacts have which."""
    kept = [made.provenance for made in run.made if made.provenance is not None]
    cells = [row.cells for table in run.tables.values() for row in table.rows]
    found = [
        ("Study", run.name),
        ("Devices", _told(filter(None, (row.get("device") for row in cells)))),
        ("Cards", _told(filter(None, (row.get("device_id") for row in cells)))),
        ("Energy by", _told(filter(None, (row.get("energy_source") for row in cells)))),
        ("Libraries of the rows", _told(filter(None, (row.get("software") for row in cells)))),
        ("Processors", _told(_host(item, "cpu") for item in kept)),
        ("Usable cores", _told(_host(item, "cpus_usable") for item in kept)),
        ("Platforms", _told(_host(item, "platform") for item in kept)),
        ("Python", _told(str(item.get("python")) for item in kept)),
        ("Packages", _packages(kept)),
        ("Commits", _told(_commit(item) for item in kept)),
        ("Built", _span(kept)),
        ("Tables", listed(list(run.tables), most=len(run.tables))),
    ]
    return [(name, value) for name, value in found if value]


def plan_section(run: Run) -> Section:
    """Time planned and time taken, by stage."""
    id, heading = "plan", "Plan and time taken"
    taken = _by_stage(run.made)
    if not taken:
        return Section(id, heading, [Absent("No provenance tells how long the artifacts behind these tables took.")])
    planned = _planned(run.plan) if run.plan is not None else {}
    heads = [
        Head("stage"),
        Head("artifacts", is_number=True),
        Head("taken, minutes", is_number=True),
        Head("planned, minutes", is_number=True),
        Head("taken / planned", is_number=True),
        Head("of the plan", is_long=True),
    ]
    rows, lines = [], []
    for stage, names in taken.items():
        seconds = sum(names.values())
        known = {name: named_s for name in names if (named_s := planned.get(name)) is not None}
        plan_s = sum(known.values()) if known else None
        # Compared over the artifacts that have both.
        both_s = sum(names[name] for name in known)
        ratio = both_s / plan_s if plan_s else None
        share = f"{len(known)} of {count_text(len(names), 'artifact')} had a planned time" if run.plan else ""
        minutes = [seconds / _MINUTE_S, None if plan_s is None else plan_s / _MINUTE_S, ratio]
        cells = [Cell(figure_text(value, 3), order=value) for value in minutes]
        rows.append(Entry([Cell(stage), Cell(str(len(names)), order=len(names)), *cells, Cell(share or NOT_MEASURED)]))
        lines.append([stage, len(names), *minutes])
    total = sum(seconds for names in taken.values() for seconds in names.values())
    blocks: list[Block] = [
        Text(
            f"The artifacts behind these tables took {_duration(total)}, summed over artifacts; some ran at the same "
            "time, and starting Python is in it."
        )
    ]
    if run.plan is None:
        blocks.append(
            Absent(
                "No plan was kept before the run, so nothing is compared. To have it next time, before the run:",
                f"effllm plan --json > {run.directory.name}/{PLAN}",
            )
        )
    header = ["stage", "artifacts", "taken_minutes", "planned_minutes", "taken_over_planned"]
    blocks.append(Listing("plan-stages", "time by stage", heads, rows, csv_text(header, lines)))
    return Section(id, heading, blocks)


def _by_stage(made: Iterable[Made]) -> dict[str, dict[str, float]]:
    """Seconds of every artifact whose provenance tells them, by stage and name."""
    found: dict[str, dict[str, float]] = {}
    for item in made:
        if item.seconds is not None:
            found.setdefault(item.name.partition("/")[0], {})[item.name] = item.seconds
    return found


def _planned(plan: Mapping[str, Any]) -> dict[str, float | None]:
    """Seconds that the plan gave to every node; None where it said that they are unknown."""
    times = {}
    for node in plan["nodes"]:
        figure = node.get("wall_s")
        value = figure.get("value") if isinstance(figure, dict) else None
        times[node["name"]] = float(value) if isinstance(value, int | float) else None
    return times


def _digests(run: Run, id: str) -> Listing:
    heads = [Head("artifact"), Head("sha256 of its manifest"), Head("commit"), Head("taken, s", is_number=True)]
    rows, lines = [], []
    for made in run.made:
        commit = _commit(made.provenance) if made.provenance else ""
        cells = [Cell(made.name), Cell(made.sha256[:_SHORT_DIGEST]), Cell(commit or NOT_MEASURED)]
        rows.append(Entry([*cells, Cell(figure_text(made.seconds, 3), order=made.seconds)]))
        lines.append([made.name, made.sha256, commit, made.seconds])
    caption = f"digests of the {count_text(len(run.made), 'artifact')} behind the tables"
    return Listing(f"{id}-digests", caption, heads, rows, csv_text(["artifact", "sha256", "commit", "seconds"], lines))


def _host(provenance: Mapping[str, Any], key: str) -> str:
    host = provenance.get("host")
    return str(host.get(key) or "") if isinstance(host, dict) else ""


def _commit(provenance: Mapping[str, Any]) -> str:
    git = provenance.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return "no commit known"
    return f"{str(git['commit'])[:_SHORT_DIGEST]}{' with changes that were not committed' if git.get('dirty') else ''}"


def _packages(kept: Iterable[Mapping[str, Any]]) -> str:
    versions: dict[str, set[str]] = {}
    for provenance in kept:
        packages = provenance.get("packages")
        for name, version in packages.items() if isinstance(packages, dict) else ():
            if version:
                versions.setdefault(str(name), set()).add(str(version))
    return ", ".join(f"{name} {' or '.join(sorted(found))}" for name, found in sorted(versions.items()))


def _span(kept: Iterable[Mapping[str, Any]]) -> str:
    starts = sorted(str(item["start"]) for item in kept if item.get("start"))
    ends = sorted(str(item["end"]) for item in kept if item.get("end"))
    return f"{starts[0]} to {ends[-1]}" if starts and ends else ""


def _told(values: Iterable[str]) -> str:
    """Each value once, with how many have it where there are several."""
    counts = Counter(value for value in values if value)
    if len(counts) < 2:
        return "".join(counts)
    return "; ".join(f"{value} ({count} of {counts.total()})" for value, count in sorted(counts.items()))


def _duration(seconds: float) -> str:
    if seconds < 2 * _HOUR_S:
        return f"{figure_text(seconds / _MINUTE_S, 3)} minutes"
    return f"{figure_text(seconds / _HOUR_S, 3)} hours"
