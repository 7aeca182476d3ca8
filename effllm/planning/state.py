"""Whether a node is up to date, and if not, why: the workflow's own rules of rerunning, without Snakemake.

A node is up to date when its manifest exists with the spec of today and with the digests that its inputs have now, and
every input is up to date. One that was deleted is built again only for a node that is to run, or if it is wanted
itself: artifacts may be deleted to save space. No payload is read.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from effllm.errors import UserError
from effllm.planning.nodes import TABLE, Node, nodes_behind, targets_of
from effllm.runtime.artifact import MANIFEST, PROVENANCE, PUBLISHED, Artifact, digest_file, read_object
from effllm.runtime.local_files import sha256_of
from effllm.runtime.provenance import code_fingerprint
from effllm.runtime.stage import SCRATCH
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.tables.record import read_record


@dataclass(frozen=True)
class Change:
    """Why a node does not stand.

    kind: `missing`; `config` or `version`, with `key`, `old` and `new`; `parent`, with the input's name in `key`;
    `waits`, for a parent that runs first; `damaged`, for a manifest that cannot be read.
    """

    kind: Literal["missing", "config", "version", "parent", "waits", "damaged"]
    key: str | None = None
    old: Any = None
    new: Any = None
    text: str | None = None

    def sentence(self) -> str:
        """For people."""
        if self.text:
            return self.text
        return f"{self.key}: {json.dumps(self.old)} -> {json.dumps(self.new)}"


@dataclass(frozen=True)
class State:
    """A node beside what exists of it, and why it runs; no `changes`: it does not."""

    node: Node
    artifact: Artifact | None
    changes: list[Change] = field(default_factory=list)

    @property
    def up_to_date(self) -> bool:
        """Nothing is to do."""
        return not self.changes

    @property
    def is_absent(self) -> bool:
        """It is not there, and nothing needs it."""
        return self.artifact is None and self.up_to_date and self.node.stage != TABLE

    @property
    def exists(self) -> bool:
        """Something was built, of today's study or of an older one."""
        return not self.is_absent and not any(change.kind in ("missing", "damaged") for change in self.changes)


def states_of(graph: Graph, nodes: Mapping[str, Node], wanted: Collection[str]) -> dict[str, State]:
    """The state of every node. `nodes` hold every parent, parents first; `wanted` names the targets among them."""
    found: dict[str, State] = {}
    for name, node in nodes.items():
        found[name] = _table_state(graph, node, found) if node.stage == TABLE else _state(graph, node, found)
    runs = _running(nodes, found, wanted)
    return {name: _settled(state, runs, found) for name, state in found.items()}


def tables_up_to_date(graph: Graph) -> set[str]:
    """The tables that are there and of which nothing is to do."""
    there = [name for name in targets_of(graph) if Path(graph.results, name).is_file()]
    states = states_of(graph, nodes_behind(graph, there), there)
    return {states[name].node.id for name in there if states[name].up_to_date}


def _running(nodes: Mapping[str, Node], found: Mapping[str, State], wanted: Collection[str]) -> set[str]:
    """Names of the nodes that run: those with a reason, what follows from them, and what they lack."""
    children: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for parent in node.parents:
            children[parent].append(name)
    queue = [name for name, state in found.items() if state.changes and (name in wanted or not _is_missing(state))]
    runs = set(queue)
    while queue:
        name = queue.pop()
        lacking = [parent for parent in nodes[name].parents if _is_missing(found[parent])]
        for other in (*children[name], *lacking):
            if other not in runs:
                runs.add(other)
                queue.append(other)
    return runs


def _settled(state: State, runs: Collection[str], found: Mapping[str, State]) -> State:
    if state.node.name not in runs:
        return replace(state, changes=[])
    waits = [parent for parent in state.node.parents if parent in runs]
    if state.changes or not waits:
        return state
    others = f" and {len(waits) - 1} more" if len(waits) > 1 else ""
    return replace(state, changes=[Change("waits", text=f"{waits[0]}{others} first")])


def _is_missing(state: State) -> bool:
    return any(change.kind == "missing" for change in state.changes)


def built_by_older_code(artifact: Artifact) -> bool:
    """Whether the sources of the artifact's stage have changed since it was built."""
    fingerprint = provenance(artifact).get("code_fingerprint")
    return fingerprint is not None and fingerprint != _fingerprint_today(artifact.manifest.stage)


def provenance(artifact: Artifact) -> dict[str, Any]:
    """How the artifact came to be; empty where that was lost."""
    try:
        return read_object(artifact.directory / PROVENANCE)
    except (OSError, ValueError, TypeError):
        return {}


def older_code_line(graph: Graph) -> str:
    """One sentence: how many of the study's artifacts were built by older code of their stage. Reads no payload."""
    older: dict[str, int] = {}
    count = 0
    for stage in STAGES:
        for id in graph.ids(stage):
            path = Path(graph.manifest(stage, id)).parent / PROVENANCE
            try:
                fingerprint = read_object(path).get("code_fingerprint")
            except (OSError, ValueError, TypeError):
                continue
            count += 1
            if fingerprint is not None and fingerprint != _fingerprint_today(stage):
                older[stage] = older.get(stage, 0) + 1
    if not older:
        return f"{count} artifacts of the study exist, none built by older code of its stage."
    by_stage = ", ".join(f"{stage} {number}" for stage, number in older.items())
    return (
        f"{sum(older.values())} of {count} artifacts of the study were built by older code of their stage "
        f"({by_stage}); they stand until its version is raised: effllm status."
    )


def require_readable(paths: Iterable[str]) -> None:
    """Raise `UserError` if a manifest among these files exists and cannot be read or is of another artifact.

    Snakemake compares file times first, so artifacts that changed places look to it as they did before.
    """
    for path in map(Path, paths):
        if path.name == MANIFEST and path.exists():
            _open_in_place(path)


def _open_in_place(path: Path) -> Artifact:
    artifact = Artifact.open(path)
    misplaced = artifact.misplaced()
    if misplaced:
        raise UserError(f"{misplaced}: move it back, or delete {path.parent} and run again.")
    return artifact


def require_todays_specs(graph: Graph, up_to_date: Iterable[str]) -> None:
    """Raise `UserError` if a manifest among these outputs, which are not rebuilt, is of another configuration.

    Outputs that are tables are passed over. A manifest of another artifact or that cannot be read is refused as well.

    Snakemake reruns what its own record says was built with other parameters. Of artifacts that were copied here, or
    whose record was deleted, it knows nothing.
    """
    others = []
    for path in map(Path, up_to_date):
        # Tables stand too; Snakemake's record and their own tell what they were made from.
        if path.name != MANIFEST or not path.exists():
            continue
        stage, id = path.parts[-3:-1]
        artifact = _open_in_place(path)
        if artifact.manifest.spec != graph.spec(stage, id):
            others.append(f"{stage}/{id}")
    if others:
        listed = ", ".join(sorted(others)[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        rules = " ".join(sorted({name.partition("/")[0] for name in others}))
        raise UserError(
            f"{listed}: built under another configuration, and Snakemake has no record of it, so it would not build "
            f"them again. Delete their directories, or run again with --forcerun {rules}; effllm status says what "
            "differs."
        )


def has_changed_files(graph: Graph, stage: str, id: str) -> bool:
    """Whether a node whose inputs are all local files exists, built from other files or from other content."""
    name = f"{stage}/{id}"
    node = nodes_behind(graph, [name])[name]
    if not Path(node.path).is_file():
        return False
    try:
        artifact = Artifact.open(node.path)
    except UserError:
        # What it was built from is not known; who looks at the state of nodes hears why.
        return False
    return any(_changed_inputs(graph, node, artifact, {}))


@cache
def _fingerprint_today(stage: str) -> str:
    return code_fingerprint(STAGES[stage].module)


def _state(graph: Graph, node: Node, states: Mapping[str, State]) -> State:
    path = Path(node.path)
    if not path.exists():
        # Snakemake deletes a manifest before it reruns a node; the payload is still there.
        is_interrupted = path.with_name(PUBLISHED).is_file()
        return State(
            node, None, [Change("missing", text="its rerun did not end" if is_interrupted else "not built yet")]
        )
    try:
        artifact = Artifact.open(path)
    except UserError as error:
        return State(node, None, [Change("damaged", text=str(error))])
    misplaced = artifact.misplaced()
    if misplaced:
        return State(node, None, [Change("damaged", text=misplaced)])
    spec = graph.spec(node.stage, node.id)
    changes = list(_differences(artifact.manifest.spec, spec))
    changes += _changed_inputs(graph, node, artifact, states)
    return State(node, artifact, changes)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key, before, after in _walk("", old, new):
        yield Change("version" if key == "version" else "config", key, before, after)


def _walk(where: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _walk(f"{where}.{key}" if where else key, old.get(key), new.get(key))
    elif old != new or type(old) is not type(new):
        yield where.removeprefix("config."), old, new


def _changed_inputs(graph: Graph, node: Node, artifact: Artifact, states: Mapping[str, State]) -> Iterator[Change]:
    recorded = artifact.manifest.parents
    for key, items in node.inputs.items():
        for index, item in enumerate(items):
            parent = states.get(item)
            if parent is None:
                yield from _changed_file(graph, f"{key}[{index}]", item, artifact)
                continue
            before = f"{recorded[key].stage}/{recorded[key].id}" if key in recorded else None
            if before != item:
                yield Change("parent", key, before, item, f"{key}: {before} -> {item}")
            elif parent.artifact is not None and recorded[key].sha256 != parent.artifact.sha256:
                yield Change("parent", key, before, item, f"{item} was rebuilt since")
    names = {key for key, items in node.inputs.items()}
    for key in sorted(recorded):
        if key.partition("[")[0] not in names:
            yield Change(
                "parent", key, f"{recorded[key].stage}/{recorded[key].id}", None, f"{key} is no input any more"
            )


def _changed_file(graph: Graph, key: str, path: str, artifact: Artifact) -> Iterator[Change]:
    recorded = artifact.manifest.parents.get(key)
    if recorded is None or recorded.id != Path(path).name:
        yield Change("parent", key, recorded.id if recorded else None, path, f"{path} is a new input")
        return
    if sha256_of(Path(path), Path(graph.results, SCRATCH)) != recorded.sha256:
        yield Change("parent", key, path, path, f"{path} has changed since")


def _table_state(graph: Graph, node: Node, states: Mapping[str, State]) -> State:
    path = Path(node.path)
    if not path.is_file():
        return State(node, None, [Change("missing", text="not assembled yet")])
    record = read_record(path)
    if record is None:
        return State(node, None, [Change("parent", text="no record tells what it was assembled from")])
    changes = list(_differences(record["spec"], graph.table_spec(node.id)))
    before, now = record["inputs"], {parent: _digest(states[parent]) for parent in node.parents}
    if before.keys() != now.keys():
        added, gone = len(now.keys() - before.keys()), len(before.keys() - now.keys())
        changes.append(Change("parent", text=f"{added} inputs are new in it, {gone} are not in it any more"))
    else:
        rebuilt = [name for name, sha256 in now.items() if sha256 and before[name] != sha256]
        if rebuilt:
            changes.append(Change("parent", text=f"{len(rebuilt)} of its inputs were rebuilt since"))
    return State(node, None, changes)


def _digest(state: State) -> str | None:
    """Of the manifest, or of the table itself; None where there is none."""
    if state.node.stage != TABLE:
        return state.artifact.sha256 if state.artifact else None
    path = Path(state.node.path)
    return digest_file(path).sha256 if path.is_file() else None
