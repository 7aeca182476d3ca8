"""Planned beside taken: by what was known before the run, whatever has been run by now."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effllm.cli import main
from effllm.errors import CellFailure
from effllm.planning.compare import Comparison, comparison_of
from effllm.planning.estimate import NOTHING_ASSUMED
from effllm.planning.plan import plan_of
from effllm.results.provenance import Provenance
from effllm.runtime.artifact import Artifact, Parent
from effllm.runtime.publishing import publish
from effllm.stages.graph import Graph
from tests.unit.planning.conftest import H100, HOST, build, training_records

Study = dict[str, Any]
GraphOf = Callable[[Study], Graph]
OLD = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:02:00Z"}
NEW = {"start": "2026-02-01T00:00:00Z", "end": "2026-02-01T00:02:00Z"}


def compare(graph: Graph, *targets: str) -> Comparison:
    return comparison_of(graph, targets, H100, None, NOTHING_ASSUMED, fetch=False)


def fail(graph: Graph, id: str, wall_s: float) -> None:
    """Publish a failed training."""
    staging = Path(graph.results, ".scratch/pretrain", id, "staging")
    staging.mkdir(parents=True)
    parents = {
        name: Artifact.open(Path(path)) for name, path in graph.parents("pretrain", id).items() if isinstance(path, str)
    }
    publish(
        staging,
        Path(graph.results, "pretrain", id),
        stage="pretrain",
        id=id,
        spec=graph.spec("pretrain", id),
        parents={key: Parent(p.manifest.stage, p.manifest.id, p.sha256) for key, p in parents.items()},
        provenance=Provenance.model_validate({"wall_s": wall_s, "host": HOST} | NEW),
        failure=CellFailure("oom", "80 GB were too few"),
    )


def test_of_nothing_there_is_nothing_to_compare(
    study: Study, write_study: Callable[[Study], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--study", str(write_study(study)), "--results", str(tmp_path / "results"), "--device", H100]
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--compare", *arguments, "pretrain/llama-1m"])
    assert "Nothing was run yet: 4 nodes are to do" in capsys.readouterr().out


def test_a_partial_run_is_compared_with_what_was_known_before(
    study: Study,
    graph_of: GraphOf,
    write_study: Callable[[Study], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    graph = graph_of(study)
    planned = {node.name: node.wall_s for node in plan_of(graph, device=H100).nodes}
    took = 0.1 * 480 + 25
    build(graph, "pretrain/llama-1m", training_records(0.1), wall_s=took, **NEW)
    fail(graph, "qwen2-1m", wall_s=3.0)
    compared = compare(graph, "table9")
    (pair,) = (pair for pair in compared.nodes if pair.name == "pretrain/llama-1m")
    # Its own time is known by now, and not taken.
    assert plan_of(graph, ["pretrain/llama-1m"], device=H100).nodes == []
    assert (pair.planned_s, pair.basis) == (planned[pair.name].value, "reference")
    assert pair.took_s == pytest.approx(took) and pair.ratio == pytest.approx(took / planned[pair.name].value)
    stage = compared.stages["pretrain"]
    assert (stage.ok, stage.failed, stage.to_do) == (1, 1, 1)
    assert stage.ratio == pytest.approx(pair.ratio) and set(stage.by_basis) == {"reference"}
    assert compared.failed == {"pretrain/qwen2-1m": "oom: 80 GB were too few"}
    assert compared.known_before == NEW["start"] and compared.stages["profile"].to_do == 15
    assert compared.nodes[0] is max(compared.nodes, key=lambda pair: abs(pair.took_s - (pair.planned_s or 0)))
    # For people, and for programs.
    arguments = ["--study", str(write_study(study)), "--results", graph.results, "--device", H100, "table9"]
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--compare", *arguments])
    printed = capsys.readouterr().out
    assert "qwen2-1m oom: 80 GB were too few" in printed
    assert f"pretrain/llama-1m: planned {planned[pair.name].value:.0f} s, took 73 s" in printed
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--compare", "--json", *arguments])
    assert json.loads(capsys.readouterr().out)["total"]["failed"] == 1


def test_earlier_builds_were_known_and_later_ones_were_not(study: Study, graph_of: GraphOf) -> None:
    study["pretraining"]["other"] = study["pretraining"]["llama-1m"] | {"seed": 1}
    study["pretraining"]["later"] = study["pretraining"]["llama-1m"] | {"seed": 2}
    graph = graph_of(study)
    build(graph, "pretrain/llama-1m", training_records(0.1), wall_s=0.1 * 480 + 25, **NEW)
    build(graph, "pretrain/later", training_records(0.3), wall_s=300, **NEW)
    assert compare(graph, "pretrain/llama-1m").nodes[0].basis == "reference"
    build(graph, "pretrain/other", training_records(0.2), wall_s=0.2 * 480 + 5, **OLD)
    (pair,) = (pair for pair in compare(graph, "pretrain/llama-1m").nodes if pair.name == "pretrain/llama-1m")
    assert pair.basis == "measured" and "pretrain/other" in pair.source
    assert pair.planned_s == pytest.approx(0.2 * 480 + 5) and pair.ratio == pytest.approx(73 / 101)


def test_an_artifact_without_its_history_is_built_and_not_compared(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    artifact = build(graph, "pretrain/llama-1m", training_records(0.1), **NEW)
    (artifact.directory / "provenance.json").unlink()
    stage = compare(graph, "pretrain/llama-1m").stages["pretrain"]
    assert (stage.ok, stage.untimed, stage.to_do, stage.ratio) == (1, 1, 0, None)


def test_what_was_built_from_another_study_is_not_compared(study: Study, graph_of: GraphOf) -> None:
    build(graph_of(study), "pretrain/llama-1m", training_records(0.1), wall_s=70, **NEW)
    study["pretraining"]["llama-1m"]["max_steps"] = 960
    compared = compare(graph_of(study), "pretrain/llama-1m")
    assert compared.stages["pretrain"].ok == 0 and compared.stages["pretrain"].to_do == 1
    assert compared.total.ok == 3
