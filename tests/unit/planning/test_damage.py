"""Manifests, provenance and records of any content end in sentences: in verify, status, plan and the sizes of jobs."""

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effllm.cli import main
from effllm.cluster.requests import GPU_STAGES, request
from effllm.errors import UserError
from effllm.planning.plan import plan_of
from effllm.planning.state import older_code_line, require_todays_specs
from effllm.planning.status import status_of, text_of
from effllm.planning.verify import damage_of
from effllm.runtime.artifact import MANIFEST, PROVENANCE, PUBLISHED, Artifact
from effllm.runtime.stage import _open_inputs
from effllm.stages.graph import Graph
from effllm.tables.record import damage_of_table, write_record
from tests.summaries import model_summary
from tests.unit.planning.conftest import build

GraphOf = Callable[[dict[str, Any]], Graph]
NODE = "quantize/llama-1m.int4"
FILES = (MANIFEST, PROVENANCE, PUBLISHED)
CONTENTS = {
    "empty": b"",
    "list": b"[]",
    "number": b"1",
    "null": b"null",
    "object": b"{}",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "huge integer": b'{"payload": 1' + b"0" * 5000 + b"}",
    "cut": b'{"format": 1, "id":',
}
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture
def built(study: dict[str, Any], graph_of: GraphOf) -> Graph:
    """A study of which one quantized model and what it needs were built."""
    graph = graph_of(study)
    build(graph, NODE, {"model/model.safetensors": "x", "records/steps.json": "{}"})
    return graph


def _survives(graph: Graph) -> list[str]:
    """What verify says of the node, after every other reader of its files came to an end."""
    manifest = Path(graph.results, NODE, MANIFEST)
    damage = list(damage_of(manifest))
    text_of(status_of(graph), []).encode()
    plan_of(graph, ["table9"])
    older_code_line(graph)
    for call in (
        lambda: require_todays_specs(graph, [str(manifest)]),
        lambda: request(graph.study, "profile", "llama-1m.int4", {"model": str(manifest)}, cores=2),
    ):
        try:
            call()
        except UserError as error:
            damage.append(str(error))
    for sentence in damage:
        assert "\n" not in sentence and len(sentence.encode()) < 2000
    return damage


def _verify(graph: Graph) -> int:
    """The exit code of `effllm verify`."""
    with pytest.raises(SystemExit) as ended:
        main(["verify", graph.results])
    return ended.value.code


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("file", FILES)
def test_any_content_is_a_sentence(built: Graph, file: str, content: str) -> None:
    assert _survives(built) == []
    Path(built.results, NODE, file).write_bytes(CONTENTS[content])
    assert file in " ".join(_survives(built))


@pytest.mark.parametrize("file", FILES)
def test_a_directory_in_the_place_of_a_file_is_a_sentence(built: Graph, file: str) -> None:
    path = Path(built.results, NODE, file)
    path.unlink()
    path.mkdir()
    assert file in " ".join(_survives(built))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_at_any_key_is_survived(built: Graph, data: st.DataObject) -> None:
    directory = Path(built.results, NODE)
    file = data.draw(st.sampled_from(FILES))
    original = (directory / file).read_bytes()
    content = json.loads(original)
    where = content
    while True:
        key = data.draw(st.sampled_from(sorted(where)))
        if isinstance(where[key], dict) and where[key] and data.draw(st.booleans()):
            where = where[key]
            continue
        break
    if data.draw(st.booleans()):
        where[key] = data.draw(_json)
    else:
        del where[key]
    try:
        (directory / file).write_text(json.dumps(content))
        damage = _survives(built)
        is_covered = file != PROVENANCE and content != json.loads(original)
        assert damage or not is_covered
    finally:
        (directory / file).write_bytes(original)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(file=st.sampled_from(FILES), content=st.binary(max_size=40))
def test_any_bytes_are_survived(built: Graph, file: str, content: bytes) -> None:
    path = Path(built.results, NODE, file)
    original = path.read_bytes()
    try:
        path.write_bytes(content)
        assert _survives(built)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest.update(status="oom", reason="out of memory"),
        lambda manifest: manifest["spec"].update(version=99),
        lambda manifest: manifest["parents"]["model"].update(sha256="0" * 64),
        lambda manifest: manifest["parents"].clear(),
    ],
    ids=["status", "spec", "parent", "parents"],
)
@pytest.mark.parametrize("with_copy", [False, True], ids=["alone", "with its copy"])
def test_an_edited_manifest_is_found_and_refused_as_an_input(
    built: Graph, edit: Callable[[dict[str, Any]], None], with_copy: bool
) -> None:
    path = Path(built.results, NODE, MANIFEST)
    manifest = json.loads(path.read_text())
    edit(manifest)
    for name in (MANIFEST, PUBLISHED) if with_copy else (MANIFEST,):
        path.with_name(name).write_text(json.dumps(manifest))
    assert any(str(path) in sentence for sentence in damage_of(path))
    with pytest.raises(UserError, match="the artifact is damaged"):
        _open_inputs({"model": [path]}, Path(built.results, ".scratch"))


def test_swapped_artifacts_are_found_and_refused(built: Graph) -> None:
    build(built, "quantize/qwen2-1m.int4")
    first, second = Path(built.results, NODE), Path(built.results, "quantize/qwen2-1m.int4")
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    for directory, other in ((first, second), (second, first)):
        expected = f"{directory} holds the manifest of quantize/{other.name}"
        assert expected in list(damage_of(directory / MANIFEST))
        with pytest.raises(UserError, match="holds the manifest of"):
            _open_inputs({"model": [directory / MANIFEST]}, directory.parent)
        with pytest.raises(UserError, match="holds the manifest of"):
            require_todays_specs(built, [str(directory / MANIFEST)])
    entries = {entry.name: entry for entry in status_of(built)}
    assert entries[NODE].changes == [f"{first} holds the manifest of quantize/qwen2-1m.int4"]


def test_a_name_that_leaves_the_artifact_is_refused(built: Graph) -> None:
    path = Path(built.results, NODE, MANIFEST)
    for name in ("/etc/passwd", "../../outside", "a\0b", "x" * 300):
        manifest = json.loads(path.with_name(PUBLISHED).read_text())
        manifest["payload"][name] = {"size": 1, "sha256": ""}
        path.write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="not the name of a file"):
            Artifact.open(path)


def test_an_edited_table_is_found(built: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    table = Path(built.results, "table9.csv")
    table.write_text("model,ms\nllama,85\n")
    write_record(table, {"spec": {}, "inputs": {}})
    assert damage_of_table(table) is None
    assert _verify(built) == 0
    table.write_text("model,ms\nllama,58\n")
    capsys.readouterr()
    assert _verify(built) == 1
    assert f"{table} was changed after it was assembled" in capsys.readouterr().out


@pytest.mark.parametrize("content", CONTENTS)
def test_any_record_of_a_table_is_survived(built: Graph, content: str) -> None:
    table = Path(built.results, "table9.csv")
    table.write_text("model\n")
    write_record(table, {"spec": {}, "inputs": {}})
    (table.parent / ".tables" / "table9.json").write_bytes(CONTENTS[content])
    assert _verify(built) == 1
    text_of(status_of(built), [])


def test_tables_among_the_outputs_that_stand_are_passed_over(built: Graph) -> None:
    table = Path(built.results, "table9.csv")
    table.write_text("model\n")
    require_todays_specs(built, [str(table), "results/table16.csv", str(Path(built.results, NODE, MANIFEST))])


def test_every_job_is_sized_or_waits_for_an_input_from_every_partial_state(
    study: dict[str, Any], tiny_text: Any, graph_of: GraphOf
) -> None:
    """A file that is no input would end a dry run: Snakemake leaves a resource open only for its inputs."""
    graph = graph_of(tiny_text)
    stages = [*GPU_STAGES, "tokens"]
    counts = {
        "instructions": {"splits": {"train": {"samples": 1000, "answers": 1000, "answer_utf8_bytes": 100_000}}},
        "images": {"seen": 9, "dropped": {}, "unusable": [], "splits": {"train": 6, "held_out": 3}}
        | {"classes": ["0"], "size": 8, "channels": 1},
        "captions": {"seen": 9, "dropped": {}, "unusable": [], "splits": {"train": 6, "held_out": 3}}
        | {"shapes": {}, "frames": 1},
        "generator": {"family": "sd3", "parameters": {"transformer": 9}, "side_step": 4, "frame_step": 1, "source": {}},
        "encode": {"splits": {"train": 6, "held_out": 3}, "texts": 2, "text_shapes": {}, "family": "sd3"},
    }
    counts["model"] = json.loads(model_summary({"bfloat16": 10**9}, 2 * 10**9))
    names = {"encode": "encodings.json"}
    for stage in stages:
        for id in graph.ids(stage)[:1]:
            build(graph, f"{stage}/{id}")
    for stage, content in counts.items():
        for directory in Path(graph.results, stage).iterdir():
            shutil.rmtree(directory)
            build(graph, f"{stage}/{directory.name}", {names.get(stage, f"{stage}.json"): json.dumps(content)})
    built = sorted({path.parts[-3] for path in Path(graph.results).glob(f"[!.]*/*/{MANIFEST}")})
    aside = Path(graph.results, ".aside")
    aside.mkdir()
    states = [(), *((stage,) for stage in built), *combinations(built, 2), tuple(built)]
    for missing in states:
        for stage in missing:
            Path(graph.results, stage).rename(aside / stage)
        for stage in stages:
            for id in graph.ids(stage):
                inputs = graph.parents(stage, id)
                try:
                    request(graph.study, stage, id, inputs, cores=2)
                except FileNotFoundError as error:
                    assert error.filename in inputs.values(), (missing, stage, id)
        for stage in missing:
            (aside / stage).rename(Path(graph.results, stage))
