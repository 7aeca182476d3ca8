"""Dry runs from what is left of a study, under every profile: what exists is read, what does not stays open."""

import copy
import itertools
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from effllm.planning.nodes import TABLE, nodes_behind, targets_of
from effllm.runtime.artifact import MANIFEST
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from effllm.tables.paired import pairs_of
from tests.workflow.conftest import LOCAL, Workdir, run_many, stand_in

PROFILES = {"local": LOCAL, **{name: ["--profile", f"profiles/{name}"] for name in ("gh200", "h200")}}

BENCHMARKS = ["word-order", "perplexity"]


@pytest.fixture(scope="module")
def built(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """Every table of the embedded study, of few rows, with a stand-in for every result."""
    study = copy.deepcopy(tiny_text)
    for table in study["tables"].values():
        if "rows" in table:
            table["rows"] = table["rows"][:2]
        if "precisions" in table:
            table |= {"models": ["llama-1m"], "precisions": ["bfloat16", "int4"], "benchmarks": BENCHMARKS}
    for suite in study["finetuning"].values():
        if "llama-1m" in suite["models"]:
            suite |= {"models": ["llama-1m"], "methods": ["lora", "dora", "full-offload"]}
    return stand_in(tmp_path_factory.mktemp("partial"), study)


@pytest.fixture(scope="module")
def graph(built: Workdir) -> Graph:
    """Its graph."""
    return Graph(parse_study(built.study, "test"), "results")


class States:
    """Dry runs from parts of what was built, each in a directory of its own, all for the price of one start."""

    def __init__(self, built: Workdir, path: Path):
        self.built, self.path = built, path
        self.lines: list[list[str]] = []

    def add(self, missing: Collection[str], profile: str, *targets: str) -> None:
        """Plan these targets, each by itself, without some of the results: directories, files or tables."""
        directory = self.path / str(len(self.lines))
        shutil.copytree(self.built.path / "results", directory / "results", copy_function=os.link)
        shutil.copytree(self.built.path / ".snakemake", directory / ".snakemake", copy_function=os.link)
        for name in missing:
            path = directory / "results" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        options = [*PROFILES[profile], "-n", "--quiet", "all", "--config", f"study={self.built.path / 'study.yaml'}"]
        self.lines += [["--directory", str(directory), *options, "--", target] for target in targets]

    def plan(self) -> None:
        """Every dry run succeeds."""
        run_many(self.lines)


@pytest.fixture
def states(built: Workdir, tmp_path: Path) -> States:
    """None yet."""
    return States(built, tmp_path)


@pytest.mark.slow
def test_nothing_built(states: States, graph: Graph) -> None:
    nodes = set(nodes_behind(graph, targets_of(graph)))
    first = [graph.manifest(stage, graph.ids(stage)[0]) for stage in STAGES if graph.ids(stage)]
    for profile in PROFILES:
        states.add(nodes, profile, "all")
    states.add(nodes, "local", *first, *(f"results/{table}.csv" for table in graph.tables()))
    states.plan()


@pytest.mark.slow
def test_one_table_built_alone(states: States, graph: Graph) -> None:
    """Then the others: Table 9 builds weights that Table 7 starts from, without its instructions."""
    nodes = set(nodes_behind(graph, targets_of(graph)))
    # A table's pairs have the table's own inputs.
    tables = [table for table in graph.tables() if not table.endswith(pairs_of(""))]
    for table, profile in zip(tables, itertools.cycle(PROFILES)):
        other = "table9" if table == "table7" else "table7"
        missing = nodes - {f"{table}.csv", *nodes_behind(graph, [f"{table}.csv"])}
        states.add(missing, profile, "all", f"results/{other}.csv")
    states.plan()


@pytest.mark.slow
def test_stages_removed_and_manifests_removed_while_their_payloads_stay(states: States, graph: Graph) -> None:
    """One stage at a time here, without the tables; tests of the requests remove them in pairs."""
    nodes = nodes_behind(graph, targets_of(graph))
    tables = {name for name, node in nodes.items() if node.stage == TABLE}
    for stage, profile in zip(STAGES, itertools.cycle(PROFILES)):
        removed = [name for name, node in nodes.items() if node.stage == stage]
        if removed:
            states.add(tables.union(removed), profile, "all")
            states.add([f"{removed[0]}/{MANIFEST}"], "h200", "all")
    states.plan()


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
