"""Studies that build on others: one rule of merging, specs that do not depend on how a study was written."""

import copy
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from effllm.cli import main
from effllm.errors import UserError
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study, parse_study
from effllm.study.inheritance import merge, written_as_yaml
from tests.conftest import REPOSITORY

SHORT = """\
extends: [presets/precisions.yaml, presets/leaderboard.yaml, presets/gpu-protocol.yaml]
name: mine
models:
  a: {source: {kind: hub, repo: Qwen/Qwen2.5-1.5B, revision: 8faed761d45a263340a0528343f099c05c9a4323}}
  b: {source: {kind: hub, repo: Qwen/Qwen2.5-0.5B, revision: 060db6499f32faf8b98477b0a26969ef7d8b9987}}
tables:
  table9: {models: [a, b], precisions: [bfloat16, int4], benchmarks: [ifeval]}
"""


def specs(graph: Graph) -> dict[str, Any]:
    nodes = {
        f"{stage}/{id}": (graph.spec(stage, id), graph.parents(stage, id))
        for stage in STAGES
        for id in graph.ids(stage)
    }
    return nodes | {name: graph.table_spec(name) for name in graph.tables()}


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "study.yaml"


def test_a_study_of_two_models_takes_seven_lines(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, study=SHORT))
    table = study.tables.table9
    assert table is not None and (table.baseline, table.workload) == ("bfloat16", "single")
    assert study.benchmarks["ifeval"].label == "IFEval"
    assert len(SHORT.splitlines()) == 7


@pytest.mark.parametrize("name", ["tiny", "paper", "single-gpu-shapes"])
def test_a_study_written_out_has_the_same_specs(name: str, tmp_path: Path) -> None:
    path = REPOSITORY / "config" / f"{name}.yaml"
    text = written_as_yaml(path)
    raw = yaml.safe_load(text)
    assert "extends" not in raw
    assert not any(
        "like" in entry
        for section in raw.values()
        if isinstance(section, dict)
        for entry in section.values()
        if isinstance(entry, dict)
    )
    assert specs(Graph(load_study(write(tmp_path, study=text)))) == specs(Graph(load_study(path)))


def test_the_shipped_studies_are_short() -> None:
    lines = sum(
        len((REPOSITORY / "config" / f"{name}.yaml").read_text().splitlines())
        for name in ("tiny", "paper", "single-gpu-shapes")
    )
    assert lines <= 700


def test_mappings_merge_and_all_else_replaces() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": {"kind": "hub", "repo": "x/y"}, "e": {"kind": "cast", "dtype": "float16"}}
    own = {"a": {"c": [3], "f": None}, "d": {"kind": "local", "path": "p"}, "e": {"dtype": "bfloat16"}}
    before = copy.deepcopy((base, own))
    assert merge(base, own) == {
        "a": {"b": 1, "c": [3], "f": None},
        "d": {"kind": "local", "path": "p"},
        "e": {"kind": "cast", "dtype": "bfloat16"},
    }
    assert (base, own) == before


plain = st.recursive(
    st.integers() | st.none() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)


@given(plain, plain, plain)
def test_merging_in_steps_is_merging_at_once_for_mappings_alone(one: Any, two: Any, three: Any) -> None:
    one, two, three = ({"root": value} for value in (one, two, three))
    assert merge(one, merge({}, two)) == merge(one, two)
    assert merge(merge(one, two), two) == merge(one, two)
    if all(isinstance(value["root"], dict) for value in (one, two, three)):
        keys = set(itertools.chain(*(value["root"] for value in (one, two, three))))
        assert set(merge(merge(one, two), three)["root"]) == keys


def test_later_files_win_and_the_study_itself_most(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        one="evaluation: {batch_size: 1, seed: 1, max_length: 100}\n",
        two="evaluation: {batch_size: 2, seed: 2}\n",
        study=SHORT.replace("extends: [", "extends: [one.yaml, two.yaml, ").replace(", presets/gpu-protocol.yaml", "")
        + "evaluation: {batch_size: 3}\ninference: {workloads: {single: {prompt_tokens: 8, new_tokens: 8}}, idle_s: 1, "
        "warmup_maximum: 5, repeats: 3, minimum_window_s: 1, cooldown_s: 0, maximum_relative_interval: 0.1}\n",
    )
    evaluation = load_study(path).evaluation
    assert (evaluation.batch_size, evaluation.seed, evaluation.max_length) == (3, 2, 100)


def test_an_entry_may_be_like_one_of_an_inherited_file(tmp_path: Path) -> None:
    path = write(tmp_path, study=SHORT + "benchmarks:\n  short: {like: ifeval, limit: 10, label: IFEval 10}\n")
    benchmark = load_study(path).benchmarks["short"]
    assert (benchmark.task, benchmark.limit) == ("leaderboard_ifeval", 10)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("extends: nowhere.yaml", ["extends", "'nowhere.yaml' does not exist"]),
        ("extends: presets/leaderbord.yaml", ["did you mean 'presets/leaderboard.yaml'?"]),
        ("extends: 3", ["extends", "3 is not a file"]),
        ("extends: [[a]]", ["extends", "is not a file"]),
        ("extends: study.yaml", ["extends this study itself"]),
        ("extends: round.yaml", ["extends this study itself"]),
        ("extends: list.yaml", ["list.yaml holds no study to extend"]),
        ("extends: broken.yaml", ["broken.yaml is not valid YAML"]),
        ("precisions: {x: {like: bfloat61}}", ["precisions.x.like: 'bfloat61' does not exist"]),
        ("precisions: {x: {like: x}}", ["precisions.x.like", "like this entry itself"]),
        ("precisions: {x: {like: y}, y: {like: x}}", ["like this entry itself"]),
        ("precisions: {x: {like: 3}}", ["precisions.x.like: 3 does not exist"]),
        ("precisions: {x: {like: bfloat16, dtype: int7}}", ["precisions.x.dtype", "int7"]),
    ],
)
def test_bad_inheritance_is_named_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, expected: list[str]
) -> None:
    text = SHORT if not change.startswith("extends") else SHORT.split("\n", 1)[1]
    path = write(tmp_path, study=f"{change}\n{text}", round="extends: study.yaml\n", list="- a\n", broken="a: [")
    with pytest.raises(SystemExit):
        main(["check", str(path)])
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and len(message) < 420
    for part in expected:
        assert part in message


def test_a_chain_without_end_is_refused(tmp_path: Path) -> None:
    entries = ", ".join(f"x{i}: {{like: x{i + 1}}}" for i in range(3000))
    path = write(tmp_path, study=f"precisions: {{{entries}}}\n" + SHORT)
    with pytest.raises(UserError, match=r"in a row"):
        load_study(path)


def test_a_parsed_study_inherits_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_study(yaml.safe_load(SHORT), "study").name == "mine"


def test_the_written_out_study_is_printed(tmp_path: Path) -> None:
    path = write(tmp_path, study=SHORT)
    printed = subprocess.run(
        [sys.executable, "-m", "effllm.cli", "check", "--resolved", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert yaml.safe_load(printed)["benchmarks"]["ifeval"]["task"] == "leaderboard_ifeval"
