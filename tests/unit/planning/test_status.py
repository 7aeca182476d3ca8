"""Status names what is stale and why, what failed, and what can be resumed; verify finds what was altered."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effllm.cli import main
from effllm.planning.state import older_code_line
from effllm.planning.status import Entry, status_of
from effllm.runtime.lease import lease
from effllm.runtime.provenance import code_fingerprint
from effllm.runtime.stage import KEY, LEASE, scratch_key
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from tests.unit.planning.conftest import build

Study = dict[str, Any]
GraphOf = Callable[[Study], Graph]


def _entries(graph: Graph) -> dict[str, Entry]:
    return {entry.name: entry for entry in status_of(graph)}


def test_a_changed_setting_is_named_with_old_and_new_value(study: Study, graph_of: GraphOf) -> None:
    build(graph_of(study), "quantize/llama-1m.int4")
    after = copy.deepcopy(study)
    after["pretraining"]["llama-1m"]["optimizer"]["learning_rate"] = 1.0e-3
    entries = _entries(graph_of(after))
    assert entries["tokens/python-docs"].state == "ok"
    run = entries["pretrain/llama-1m"]
    assert run.state == "stale" and not run.follows
    assert run.differences == [{"key": "optimizer.learning_rate", "old": 0.004, "new": 0.001}]
    assert run.changes == ["optimizer.learning_rate: 0.004 -> 0.001"]
    assert entries["quantize/llama-1m.int4"].follows
    assert entries["pretrain/qwen2-1m"].state == "missing"


def test_a_raised_version_is_named(study: Study, graph_of: GraphOf, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(study)
    build(graph, "tokens/python-docs")
    old = STAGES["tokens"].version
    monkeypatch.setattr(STAGES["tokens"], "version", old + 1)
    entry = _entries(graph)["tokens/python-docs"]
    assert entry.changes == [f"version: {old} -> {old + 1}"]


def test_a_parent_that_was_rebuilt_to_other_bytes_makes_its_children_stale(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    build(graph, "tokens/python-docs")
    corpus = Path(graph.results, "corpus", "python-docs")
    for path in corpus.iterdir():
        path.unlink() if path.is_file() else path.rmdir()
    corpus.rmdir()
    build(graph, "corpus/python-docs", {"corpus.json": "{}"})
    entries = _entries(graph)
    assert entries["corpus/python-docs"].state == "ok"
    assert entries["tokenizer/python-docs-2k"].changes == ["corpus/python-docs was rebuilt since"]


def test_older_code_is_counted_and_reruns_nothing(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    build(graph, "tokenizer/python-docs-2k", code_fingerprint="older")
    assert older_code_line(graph).startswith("2 of 2 artifacts of the study were built by older code")
    entries = _entries(graph)
    assert entries["tokenizer/python-docs-2k"].older_code and entries["tokenizer/python-docs-2k"].state == "ok"


def test_todays_code_is_not_older(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    build(graph, "corpus/python-docs", code_fingerprint=code_fingerprint(STAGES["corpus"].module))
    assert older_code_line(graph) == "1 artifacts of the study exist, none built by older code of its stage."


def test_the_end_of_a_failed_jobs_log_is_shown(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    log = Path(graph.results).parent / "logs" / "corpus" / "python-docs.log"
    log.parent.mkdir(parents=True)
    log.write_text("\n".join(f"line {number}" for number in range(40)))
    assert _entries(graph)["corpus/python-docs"].failure == [f"line {number}" for number in range(25, 40)]
    log.write_text("Traceback\nerror: the file system is full; free some space.\n")
    assert _entries(graph)["corpus/python-docs"].failure == ["error: the file system is full; free some space."]
    build(graph, "corpus/python-docs")
    assert _entries(graph)["corpus/python-docs"].failure is None


def test_a_job_whose_lease_is_held_is_running(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    with lease(Path(graph.results, ".scratch", "corpus", "python-docs", LEASE), "corpus/python-docs"):
        assert _entries(graph)["corpus/python-docs"].running
    assert not _entries(graph)["corpus/python-docs"].running


def test_a_checkpoint_counts_for_its_own_spec_and_inputs_only(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    tokens, tokenizer = (build(graph, name) for name in ("tokens/python-docs", "tokenizer/python-docs-2k"))
    scratch = Path(graph.results, ".scratch", "pretrain", "llama-1m")
    for step in (80, 160):
        (scratch / "work" / f"checkpoint-{step}").mkdir(parents=True)
    (scratch / "work" / "checkpoint-80" / "complete").touch()
    parents = {"tokens": tokens.as_parent(), "tokenizer": tokenizer.as_parent()}
    (scratch / KEY).write_text(scratch_key(graph.spec("pretrain", "llama-1m"), parents))
    assert _entries(graph)["pretrain/llama-1m"].resumes_at_step == 80
    study["pretraining"]["llama-1m"]["seed"] = 1
    assert _entries(graph_of(study))["pretrain/llama-1m"].resumes_at_step is None


def test_the_command_prints_for_people_and_as_json(
    study: Study, graph_of: GraphOf, write_study: Callable[[Study], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    graph = graph_of(study)
    build(graph, "corpus/python-docs")
    build(graph, "benchmark/perplexity")
    study["corpora"]["python-docs"]["seed"] = 3
    del study["benchmarks"]["perplexity"]
    study["tables"]["table9"]["benchmarks"].remove("perplexity")
    arguments = ["status", "--study", str(write_study(study)), "--results", graph.results]
    with pytest.raises(SystemExit):
        main(arguments)
    printed = capsys.readouterr().out
    assert "seed: 0 -> 3" in printed
    assert "no node of this study: 1 (benchmark/perplexity)" in printed
    with pytest.raises(SystemExit):
        main([*arguments, "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["of_no_node"] == ["benchmark/perplexity"]
    assert {node["name"]: node["state"] for node in content["nodes"]}["corpus/python-docs"] == "stale"


def _damage(artifact: Path, what: str) -> None:
    if what == "payload":
        (artifact / "corpus.json").write_text("[]")
    elif what == "record":
        (artifact / "records" / "seconds.txt").write_text("2")
    elif what == "stranger":
        (artifact / "extra.safetensors").write_text("")
    elif what == "provenance":
        (artifact / "provenance.json").unlink()
    else:
        (artifact / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("payload", "corpus.json does not match the sha256 in its manifest"),
        ("record", "seconds.txt does not match"),
        ("stranger", "extra.safetensors is in no list of the artifact"),
        ("provenance", "provenance.json is missing"),
        ("manifest", "is not a readable manifest"),
    ],
)
def test_verify_finds_every_damage_and_names_the_remedy(
    study: Study, graph_of: GraphOf, capsys: pytest.CaptureFixture[str], what: str, sentence: str
) -> None:
    graph = graph_of(study)
    artifact = build(graph, "corpus/python-docs", {"corpus.json": "{}", "records/seconds.txt": "1"})
    with pytest.raises(SystemExit) as end:
        main(["verify", graph.results])
    assert end.value.code == 0
    _damage(artifact.directory, what)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["verify", graph.results, "--json"])
    content = json.loads(capsys.readouterr().out)
    assert end.value.code == 1
    assert content["artifacts"] == 1 and sentence in content["damaged"]["corpus/python-docs"][0]
    with pytest.raises(SystemExit):
        main(["verify", graph.results])
    assert f"-- {graph.results}/corpus/python-docs/manifest.json" in capsys.readouterr().out
