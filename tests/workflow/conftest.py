"""Runs of the real workflow on the cut-down study."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from effllm.planning.nodes import TABLE, nodes_behind, targets_of
from effllm.planning.state import states_of
from effllm.results.data import CaptionsSummary, EncodingsSummary, ImagesSummary, InstructionsSummary, SampleCounts
from effllm.results.model import GeneratorSummary, ModelSummary
from effllm.runtime.artifact import Manifest, Parent, digest_file
from effllm.stages.graph import Graph
from effllm.study import parse_study
from effllm.study.inheritance import read_study
from effllm.tables.record import write_record
from tests.conftest import REPOSITORY, SNAKEMAKE, cut_down, run_snakemake
from tests.summaries import model_summary

LOCAL = ["--profile", "profiles/local", "--cores", "2"]


class Workdir:
    """A directory with a study in it and the results of the workflow below it."""

    def __init__(self, path: Path, study: dict[str, Any]):
        self.path = path
        self.study = study
        self.write()

    def take(self, other: "Workdir") -> None:
        """Copy what another working directory has built."""
        shutil.copytree(other.path / "results", self.path / "results", ignore=shutil.ignore_patterns(".scratch"))

    def write(self) -> None:
        """Write the study as it is now."""
        (self.path / "study.yaml").write_text(yaml.safe_dump(self.study))

    def arguments(self, *targets: str, options: Sequence[str] = ()) -> list[str]:
        """The command line after `snakemake --directory DIR`: the local profile with this study in its place."""
        return [*LOCAL, *options, "--config", f"study={self.path / 'study.yaml'}", "--", *targets]

    def snakemake(
        self, *targets: str, options: Sequence[str] = (), check: bool = True, fresh: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run snakemake to the end; `fresh`: every program by a start of its own."""
        return run_snakemake(self.path, *self.arguments(*targets, options=options), check=check, fresh=fresh)

    def start(self, *targets: str) -> subprocess.Popen[bytes]:
        """Start snakemake as a terminal would, in a process group of its own, to be killed."""
        command = [*SNAKEMAKE, "--directory", str(self.path), *self.arguments(*targets)]
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def planned(self, *targets: str) -> set[str]:
        """What a dry run would build, as `<stage>/<id>` or `<table>.csv`."""
        return pending(self.snakemake(*(targets or ("all",)), options=["--summary"]).stdout)

    def planned_after(self, changes: Sequence["Change"]) -> list[set[str]]:
        """The same after each of several changes of the study or of the command line."""
        lines = []
        for number, change in enumerate(changes):
            study = copy.deepcopy(self.study)
            change.edit(study)
            file = self.path / f"study-{number}.yaml"
            file.write_text(change.comment + yaml.safe_dump(study, sort_keys=change.sorts_keys))
            options = [*(change.profile or LOCAL), *change.options, "--summary", "--config", f"study={file}"]
            lines.append(["--directory", str(self.path), *options, "--", "all"])
        return [pending(output) for output in run_many(lines)]

    def planned_without_snakemake(self, change: "Change") -> set[str]:
        """What `effllm plan` would run after a change of the study; reads results below the working directory."""
        study = copy.deepcopy(self.study)
        change.edit(study)
        graph = Graph(parse_study(study, "test"))
        wanted = targets_of(graph)
        states = states_of(graph, nodes_behind(graph, wanted), wanted)
        return {name for name, state in states.items() if not state.up_to_date}

    def built_by_running(self, *targets: str, options: Sequence[str] = (), fresh: bool = False) -> set[str]:
        """Artifacts that a run published; those that it found up to date keep their provenance."""
        results = self.path / "results"
        before = {path: path.stat().st_ino for path in results.glob("[!.]*/*/provenance.json")}
        self.snakemake(*targets, options=options, fresh=fresh)
        after = {path: path.stat().st_ino for path in results.glob("[!.]*/*/provenance.json")}
        return {"/".join(path.parts[-3:-1]) for path, inode in after.items() if before.get(path) != inode}


@dataclass(frozen=True)
class Change:
    """An edit of the study, or of how it is run."""

    edit: Callable[[dict[str, Any]], object] = lambda study: None
    comment: str = ""
    sorts_keys: bool = False
    profile: Sequence[str] = ()
    options: Sequence[str] = ()


def pending(summary: str) -> set[str]:
    """Nodes that a summary of Snakemake's says would be built."""
    rows = [line.split("\t") for line in summary.splitlines() if line.startswith("results/")]
    assert rows, f"a summary lists every node:\n{summary}"
    names = [row[0] for row in rows if row[-1] == "update pending"]
    return {name.removeprefix("results/").removesuffix("/manifest.json") for name in names}


def run_many(lines: Sequence[Sequence[str]], repository: Path = REPOSITORY) -> list[str]:
    """Outputs of Snakemake command lines over the workflow of a checkout; each must succeed."""
    command = [sys.executable, "-m", "tests.workflow.command_lines"]
    requests = [["--snakefile", str(repository / "Snakefile"), *line] for line in lines]
    environment = os.environ | {"PYTHONPATH": f"{repository}{os.pathsep}{REPOSITORY}"}
    result = subprocess.run(
        command, input=json.dumps(requests), capture_output=True, text=True, cwd=repository, env=environment
    )
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    for code, output in answers:
        assert code == 0, output
    return [output for _, output in answers]


def stand_in(path: Path, study: dict[str, Any]) -> Workdir:
    """A directory in which Snakemake believes every table of the study to be built: manifests without payloads."""
    workdir = Workdir(path, study)
    graph = Graph(parse_study(study, "test"), "results")
    digests: dict[str, str] = {}
    nodes = nodes_behind(graph, targets_of(graph))
    for name, node in nodes.items():
        file = path / node.path
        file.parent.mkdir(parents=True, exist_ok=True)
        if node.stage == TABLE:
            file.write_text("built\n")
            inputs = {parent: digests[parent] for parent in node.parents}
            write_record(file, {"spec": graph.table_spec(node.id), "inputs": inputs})
            digests[name] = digest_file(file).sha256
            continue
        parents = {}
        for key, items in node.inputs.items():
            if key == "files":
                parents |= {f"files[{n}]": _of_file(path / item) for n, item in enumerate(items)}
            else:
                parents[key] = Parent(*items[0].split("/", 1), digests[items[0]])
        manifest = Manifest(node.stage, node.id, graph.spec(node.stage, node.id), "ok", None, {}, parents)
        file.write_text(manifest.to_json())
        if node.stage == "instructions":
            # How long a fine-tuning job may take depends on the number of samples.
            counts = SampleCounts(samples=1000, answers=1000, answer_utf8_bytes=100_000)
            summary = InstructionsSummary(splits={"train": counts})
            file.with_name(InstructionsSummary.FILE).write_text(summary.to_json())
        if node.stage == "images":
            # As that of a comparison does on the number of images.
            parts = {"train": 1000, "held_out": 100}
            images = ImagesSummary(seen=1100, dropped={}, unusable=[], splits=parts, classes=["0"], size=8, channels=1)
            file.with_name(ImagesSummary.FILE).write_text(images.to_json())
        if node.stage == "captions":
            # And of captions, of pipelines, and of what these encode.
            parts = {"train": 1000, "held_out": 100}
            captions = CaptionsSummary(seen=1100, dropped={}, unusable=[], splits=parts, shapes={}, frames=1)
            file.with_name(CaptionsSummary.FILE).write_text(captions.to_json())
        if node.stage == "generator":
            weights = {"transformer": 10**9}
            pipeline = GeneratorSummary(family="sd3", parameters=weights, side_step=16, frame_step=1, source={})
            file.with_name(GeneratorSummary.FILE).write_text(pipeline.to_json())
        if node.stage == "encode":
            parts = {"train": 1000, "held_out": 100}
            encodings = EncodingsSummary(splits=parts, texts=11, text_shapes={}, family="sd3")
            file.with_name(EncodingsSummary.FILE).write_text(encodings.to_json())
        if node.stage == "model":
            # And jobs on a model on the number of its weights.
            file.with_name(ModelSummary.FILE).write_text(model_summary({"bfloat16": 10**9}, 2 * 10**9))
        digests[name] = digest_file(file).sha256
    run_many(
        [["--directory", str(path), *workdir.arguments("all", options=["--touch", "--forceall", "--quiet", "all"])]]
    )
    return workdir


def _of_file(path: Path) -> Parent:
    return Parent("file", path.name, digest_file(path).sha256)


@pytest.fixture
def workdir(micro: dict[str, Any], tmp_path: Path) -> Workdir:
    """An empty working directory with the cut-down study."""
    return Workdir(tmp_path, micro)


@pytest.fixture(scope="session")
def text(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A working directory with the text that the cut-down study trains on, its tokenizer and tokens."""
    workdir = Workdir(tmp_path_factory.mktemp("text"), cut_down(tiny_text))
    workdir.snakemake("results/tokens/python-docs/manifest.json")
    return workdir


@pytest.fixture(scope="module")
def finished(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A working directory in which every table of the cut-down study has been built."""
    workdir = Workdir(tmp_path_factory.mktemp("finished"), cut_down(tiny_text))
    workdir.snakemake("all")
    return workdir


@pytest.fixture(scope="module")
def paper(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """The paper's study with a stand-in for every result."""
    text = read_study(repository / "config" / "paper.yaml")
    # YAML's anchors make several runs one object: a change to one would be a change to all.
    return stand_in(tmp_path_factory.mktemp("paper"), json.loads(json.dumps(text)))
