"""`effllm status`: what of a study exists, what is stale and why, what failed, and what can be resumed."""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effllm.planning.nodes import TABLE, every_name, nodes_behind
from effllm.planning.options import add_study, graph_of
from effllm.planning.state import State, built_by_older_code, states_of
from effllm.runtime.artifact import MANIFEST
from effllm.runtime.lease import living_holder
from effllm.runtime.stage import CHECKPOINT_MARKER, KEY, LEASE, SCRATCH, scratch_key
from effllm.stages import STAGES
from effllm.stages.graph import Graph

_LAST_LINES = 15
_MOST_STRANGERS = 6


@dataclass(frozen=True)
class Entry:
    """One node.

    state: `ok`, a status of a failed cell (`oom`, `nan`, `unsupported`, `invalid`, `timeout`), `stale`,
    `missing`, or `absent`: not there, and nothing that is to do needs it.
    reason: why the cell failed. changes: why it does not stand, as sentences; `differences` are the configuration's
    keys with their old and new values. follows: nothing but a stale parent is the matter. running: a process on this
    file system holds its lease. failure: the end of the log of a job that ended without a result. resumes_at_step: the
    last complete checkpoint in its scratch.
    """

    name: str
    stage: str
    state: str
    reason: str | None
    changes: list[str]
    differences: list[dict[str, Any]]
    follows: bool
    older_code: bool
    running: bool
    failure: list[str] | None
    resumes_at_step: int | None


def register(command: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs."""
    add_study(command)
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the status of a study; always 0."""
    graph = graph_of(arguments)
    entries, others = status_of(graph), orphaned_artifacts(graph)
    if arguments.json:
        print(json.dumps({"nodes": [asdict(entry) for entry in entries], "of_no_node": others}, indent=1))
    else:
        print(text_of(entries, others))
    return 0


def status_of(graph: Graph) -> list[Entry]:
    """An entry per node of the study, parents first."""
    nodes = nodes_behind(graph, every_name(graph))
    inner = {parent for node in nodes.values() for parent in node.parents}
    # What nothing is made from is wanted for itself.
    states = states_of(graph, nodes, nodes.keys() - inner)
    return [_entry(graph, state, states) for state in states.values()]


def orphaned_artifacts(graph: Graph) -> list[str]:
    """Artifacts below the results that are no node of the study."""
    known = {graph.manifest(stage, id) for stage in STAGES for id in graph.ids(stage)}
    found = sorted(Path(graph.results).glob(f"[!.]*/*/{MANIFEST}"))
    return [f"{path.parts[-3]}/{path.parts[-2]}" for path in found if str(path) not in known]


def _entry(graph: Graph, state: State, states: Mapping[str, State]) -> Entry:
    node, artifact = state.node, state.artifact
    scratch = Path(graph.results, SCRATCH, node.stage, node.id)
    is_running = node.stage != TABLE and living_holder(scratch / LEASE) is not None
    is_waiting = not state.up_to_date and not is_running
    log = Path(graph.results).parent / "logs" / node.stage / f"{node.id}.log"
    return Entry(
        name=node.name,
        stage=node.stage,
        state=_name_of(state),
        reason=artifact.manifest.reason if artifact else None,
        changes=[change.sentence() for change in state.changes],
        differences=[
            {"key": change.key, "old": change.old, "new": change.new}
            for change in state.changes
            if change.kind in ("config", "version")
        ],
        follows=bool(state.changes) and all(change.kind == "waits" for change in state.changes),
        older_code=artifact is not None and built_by_older_code(artifact),
        running=is_running,
        failure=_failure(log, state) if is_waiting and node.stage != TABLE else None,
        resumes_at_step=_last_checkpoint(graph, state, states) if is_waiting and node.stage != TABLE else None,
    )


def _name_of(state: State) -> str:
    if state.is_absent:
        return "absent"
    if state.up_to_date:
        return state.artifact.manifest.status if state.artifact else "ok"
    return "stale" if state.exists else "missing"


def _failure(log: Path, state: State) -> list[str] | None:
    """The end of a log that is younger than what exists: its job ended without a result."""
    try:
        written = log.stat().st_mtime
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    if state.artifact and written <= (state.artifact.directory / MANIFEST).stat().st_mtime:
        return None
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1:] or lines[-_LAST_LINES:] or [f"{log} is empty: the job was killed before it wrote a line"]


def _last_checkpoint(graph: Graph, state: State, states: Mapping[str, State]) -> int | None:
    """The step of the last complete checkpoint, unless it is of another spec or of other inputs."""
    node = state.node
    scratch = Path(graph.results, SCRATCH, node.stage, node.id)
    key = scratch / KEY
    inputs = {name: states[items[0]].artifact for name, items in node.inputs.items() if items[0] in states}
    if not key.is_file():
        return None
    parents = {name: artifact.as_parent() for name, artifact in inputs.items() if artifact}
    if len(parents) < len(inputs) or key.read_text() != scratch_key(graph.spec(node.stage, node.id), parents):
        return None
    steps = [
        int(path.parent.name.rsplit("-", 1)[1])
        for path in scratch.glob(f"work/checkpoint-*/{CHECKPOINT_MARKER}")
        if path.parent.name.rsplit("-", 1)[1].isdigit()
    ]
    return max(steps, default=None)


def text_of(entries: Sequence[Entry], others: Sequence[str]) -> str:
    """For a terminal: a line per stage, then every node that needs a word."""
    columns = ("done", "failed", "stale", "missing", "absent")
    lines = ["{:12}{:>8}{:>8}{:>8}{:>8}{:>8}".format("stage", *columns)]
    for stage in dict.fromkeys(entry.stage for entry in entries):
        states = Counter(_column(entry) for entry in entries if entry.stage == stage)
        lines.append("{:12}{:8}{:8}{:8}{:8}{:8}".format(stage, *(states[column] for column in columns)))
    stale = [entry for entry in entries if entry.state == "stale"]
    lines += _section("Stale", [(entry.name, entry.changes) for entry in stale if not entry.follows])
    following = Counter(entry.stage for entry in stale if entry.follows)
    if following:
        by_stage = ", ".join(f"{stage} {count}" for stage, count in following.items())
        lines.append(f"  and what is built from them: {by_stage}")
    failed_cells = [(e.name, [f"{e.state}: {e.reason}"]) for e in entries if _column(e) == "failed"]
    lines += _section("Failed cells, which are results", failed_cells)
    lines += _section("Jobs that ended without a result", [(e.name, e.failure) for e in entries if e.failure])
    lines += _section("Running", [(e.name, []) for e in entries if e.running])
    resumable = [(e.name, [f"step {e.resumes_at_step}"]) for e in entries if e.resumes_at_step is not None]
    lines += _section("Checkpoints to go on from", resumable)
    older = Counter(entry.stage for entry in entries if entry.older_code)
    if older:
        by_stage = ", ".join(f"{stage} {count}" for stage, count in older.items())
        lines += [
            "",
            f"Built by older code of their stage: {older.total()} ({by_stage}); they stand until its version "
            "is raised (effllm/stages/).",
        ]
    if others:
        shown = ", ".join(others[:_MOST_STRANGERS]) + (", ..." if len(others) > _MOST_STRANGERS else "")
        lines += ["", f"Artifacts of no node of this study: {len(others)} ({shown})"]
    return "\n".join(lines)


def _column(entry: Entry) -> str:
    if entry.state in ("stale", "missing", "absent"):
        return entry.state
    return "done" if entry.state == "ok" else "failed"


def _section(title: str, items: list[tuple[str, list[str]]]) -> list[str]:
    lines = ["", title] if items else []
    for name, sentences in items:
        lines.append(f"  {name}")
        lines += [f"    {sentence}" for sentence in sentences]
    return lines
