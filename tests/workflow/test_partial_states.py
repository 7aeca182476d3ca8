"""Dry runs from what is left of a study, under every profile: what exists is read, what does not stays open."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from effllm.planning.nodes import TABLE, nodes_behind, targets_of
from effllm.runtime.artifact import MANIFEST
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from tests.workflow.conftest import LOCAL, Workdir, run_many, stand_in

PROFILES = {"local": LOCAL, **{name: ["--profile", f"profiles/{name}"] for name in ("gh200", "h200")}}


@pytest.fixture(scope="module")
def built(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """The embedded study with a stand-in for every result."""
    return stand_in(tmp_path_factory.mktemp("partial"), copy.deepcopy(tiny_text))


@pytest.fixture(scope="module")
def graph(built: Workdir) -> Graph:
    """Its graph."""
    return Graph(parse_study(built.study, "test"), "results")


@contextmanager
def _only(workdir: Workdir, kept: set[str]) -> Iterator[None]:
    """The results without the directories and tables that are not in `kept`."""
    results, aside = workdir.path / "results", workdir.path / "aside"
    for path in sorted(results.glob("[!.]*/*")) + sorted(results.glob("*.csv")):
        name = path.relative_to(results)
        if str(name) not in kept:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside / name)
    try:
        yield
    finally:
        for path in sorted(aside.glob("*/*")) + sorted(aside.glob("*.csv")):
            path.rename(results / path.relative_to(aside))
        shutil.rmtree(aside, ignore_errors=True)


def _lines(workdir: Workdir, profile: str, *targets: str) -> list[str]:
    study = ["--config", f"study={workdir.path / 'study.yaml'}"]
    return ["--directory", str(workdir.path), *PROFILES[profile], "-n", "--quiet", "all", *study, "--", *targets]


@pytest.mark.slow
def test_nothing_built(built: Workdir, graph: Graph) -> None:
    first = [graph.manifest(stage, graph.ids(stage)[0]) for stage in STAGES if graph.ids(stage)]
    tables = [f"results/{table}.csv" for table in graph.tables()]
    with _only(built, set()):
        lines = [_lines(built, profile, "all") for profile in PROFILES]
        run_many(lines + [_lines(built, "local", target) for target in first + tables])


@pytest.mark.slow
def test_one_table_built_alone(built: Workdir, graph: Graph) -> None:
    """Then the others: Table 9 builds weights that Table 7 starts from, without its instructions."""
    tables, profiles = list(graph.tables()), list(PROFILES)
    for number, table in enumerate(tables):
        with _only(built, {f"{table}.csv", *nodes_behind(graph, [f"{table}.csv"])}):
            other = "table9" if table == "table7" else "table7"
            run_many([_lines(built, profiles[number % 3], target) for target in ("all", f"results/{other}.csv")])


@pytest.mark.slow
def test_stages_removed(built: Workdir, graph: Graph) -> None:
    """Alone here, without the tables; tests of the requests remove them in pairs."""
    nodes, profiles = nodes_behind(graph, targets_of(graph)), list(PROFILES)
    for number, removed in enumerate(stage for stage in STAGES if graph.ids(stage)):
        with _only(built, {name for name, node in nodes.items() if node.stage not in (removed, TABLE)}):
            run_many([_lines(built, profiles[number % 3], "all")])


@pytest.mark.slow
def test_manifests_removed_while_their_payloads_stay(built: Workdir, graph: Graph) -> None:
    for stage in (stage for stage in STAGES if graph.ids(stage)):
        manifest = next((built.path / "results" / stage).glob(f"*/{MANIFEST}"), None)
        if manifest is None:
            continue
        content = manifest.read_bytes()
        manifest.unlink()
        try:
            run_many([_lines(built, "h200", "all")])
        finally:
            manifest.write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\x00", b"[" * 100_000], ids=["empty", "list", "binary", "deep"])
def test_a_damaged_parent_is_a_sentence(built: Workdir, graph: Graph, content: bytes) -> None:
    manifest = built.path / graph.manifest("quantize", "llama-1m.int4")
    before = manifest.read_bytes()
    manifest.write_bytes(content)
    evaluations = (path for path in (built.path / "results/evaluate").iterdir() if "llama-1m.int4" in path.name)
    child = Path("results/evaluate", sorted(evaluations)[0].name, MANIFEST)
    child_before = (built.path / child).read_bytes()
    (built.path / child).unlink()
    try:
        result = built.snakemake(str(child), options=["-n"], check=False)
        output = result.stdout + result.stderr
        assert result.returncode == 1 and "Traceback" not in output and "Exception" not in output, output
        assert f"error: {graph.manifest('quantize', 'llama-1m.int4')} is not a readable manifest" in output
    finally:
        manifest.write_bytes(before)
        (built.path / child).write_bytes(child_before)
