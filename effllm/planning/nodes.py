"""The nodes behind a target: the study's graph as data, parents first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from effllm.errors import UserError
from effllm.fields import suggestion
from effllm.runtime.artifact import MANIFEST
from effllm.stages import STAGES
from effllm.stages.graph import Graph

TABLE = "table"
EVERYTHING = "all"
REPORT = "report.html"


@dataclass(frozen=True)
class Node:
    """An artifact of a stage, or a table (`stage` is "table").

    inputs: names (`<stage>/<id>`) of the nodes and paths of the plain files that it is built from, by input name.
    path: the file whose existence makes it done.
    """

    stage: str
    id: str
    path: str
    inputs: dict[str, tuple[str, ...]]
    parents: tuple[str, ...]

    @property
    def name(self) -> str:
        """`<stage>/<id>`, or the table's file name."""
        return f"{self.stage}/{self.id}" if self.stage != TABLE else f"{self.id}.csv"


def targets_of(graph: Graph, targets: Sequence[str] = ()) -> list[str]:
    """Names of the nodes that the targets name; all tables if there is none.

    A target is what Snakemake takes (`results/table9.csv`, `results/quantize/x.int4/manifest.json`) or shorter
    (`table9`, `quantize/x.int4`). Raises `UserError` for one that the study does not have.
    """
    return list(dict.fromkeys(name for target in targets or [EVERYTHING] for name in _resolve(graph, target)))


def nodes_behind(graph: Graph, names: Sequence[str]) -> dict[str, Node]:
    """Every node that the named ones need, by name, parents before children."""
    found: dict[str, Node] = {}
    opened: dict[str, Node] = {}
    stack = list(reversed(names))
    while stack:
        name = stack.pop()
        if name in found:
            continue
        if name in opened:
            found[name] = opened[name]
            continue
        opened[name] = node = _node(graph, name)
        stack.append(name)
        stack += [parent for parent in reversed(node.parents) if parent not in found]
    return found


def every_name(graph: Graph) -> list[str]:
    """All nodes of the study, also those that no table reads."""
    return [f"{stage}/{id}" for stage in STAGES for id in graph.ids(stage)] + targets_of(graph)


def _resolve(graph: Graph, target: str) -> list[str]:
    tables = {f"{table}.csv" for table in graph.tables()}
    if target == EVERYTHING:
        return [f"{table}.csv" for table in graph.tables()]
    path = PurePosixPath(target)
    if path.is_relative_to(graph.results):
        path = path.relative_to(graph.results)
    if path.name == MANIFEST:
        path = path.parent
    name = str(path)
    if name == REPORT:
        # It is made of the tables that are there, in seconds; of all of them where there is none.
        return [] if any(Path(graph.results, table).is_file() for table in tables) else sorted(tables)
    if name in tables or f"{name}.csv" in tables:
        return [name if name in tables else f"{name}.csv"]
    stage, _, id = name.partition("/")
    if not id:
        known = [*graph.tables(), EVERYTHING]
        raise UserError(f"{target}: the study {graph.study.name!r} has no such table; {suggestion(name, known)}")
    if stage not in STAGES:
        raise UserError(f"{target}: there is no stage {stage!r}; {suggestion(stage, list(STAGES))}")
    if id not in graph.ids(stage):
        raise UserError(f"{target}: the study has no {stage} {id!r}; {suggestion(id, graph.ids(stage))}")
    return [name]


def _node(graph: Graph, name: str) -> Node:
    if name.endswith(".csv") and "/" not in name:
        table = name.removesuffix(".csv")
        inputs = {stage: list(paths) for stage, paths in graph.table_parents(table).items()}
        return _with_inputs(graph, TABLE, table, f"{graph.results}/{name}", inputs)
    stage, _, id = name.partition("/")
    inputs = {key: [paths] if isinstance(paths, str) else paths for key, paths in graph.parents(stage, id).items()}
    return _with_inputs(graph, stage, id, graph.manifest(stage, id), inputs)


def _with_inputs(graph: Graph, stage: str, id: str, path: str, inputs: dict[str, list[str]]) -> Node:
    named = {key: tuple(_name(graph, stage, item) for item in paths) for key, paths in inputs.items()}
    parents = _once(item for paths in inputs.values() for item in paths if _is_built(stage, item))
    return Node(stage, id, path, named, tuple(_name(graph, stage, item) for item in parents))


def _is_built(stage: str, path: str) -> bool:
    """Whether an input is a node's: tables read manifests and other tables, stages manifests and plain files."""
    return stage == TABLE or path.endswith(f"/{MANIFEST}")


def _name(graph: Graph, stage: str, path: str) -> str:
    """The node whose manifest or table an input is; the path itself of a plain file."""
    if not _is_built(stage, path):
        return path
    return path.removeprefix(f"{graph.results}/").removesuffix(f"/{MANIFEST}")


def _once(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
