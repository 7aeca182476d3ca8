"""Any mutation of a study is valid or answered in one line within seconds; no mistake ends in a traceback."""

import copy
import io
import json
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effllm.cli import main
from effllm.errors import EXIT_USER_ERROR
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study
from effllm.study.inheritance import read_study
from tests.conftest import REPOSITORY

TINY = (REPOSITORY / "config" / "tiny.yaml").read_bytes()
STUDY = json.loads(json.dumps(read_study(REPOSITORY / "config" / "tiny.yaml")))
NASTY = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, 0, -1, 1, 2, 3, 7, 10**18, 2**64, 10**400, -(10**400)),
            *(float("inf"), float("-inf"), float("nan"), 1e308, 1e-308, -0.0, 0.5),
            *("", " ", "a b", "/etc/passwd", "../x", "https://huggingface.co/a/b", "x" * 20_000, "\0", "\n", "é", "{}"),
            *([], [[]], {}, {"kind": "hub"}, {"kind": []}, [None], ["x"] * 3000, {"a": {"b": {"c": 1}}}),
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in items for path in ((*prefix, key), *_paths(item, (*prefix, key)))]


PATHS = _paths(STUDY)


@st.composite
def mutated_studies(draw: st.DrawFn) -> Any:
    """The tiny study with one to three of its values deleted, replaced, renamed or doubled."""
    study = copy.deepcopy(STUDY)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(PATHS))
        holder = study
        try:
            for key in parents:
                holder = holder[key]
            value = holder[last]
        except (KeyError, IndexError, TypeError):
            continue
        action = draw(st.sampled_from(["delete", "replace", "replace", "rename", "wrap"]))
        if action == "delete":
            del holder[last]
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(st.one_of(st.just(f"{last}x"), st.text(max_size=8), st.integers()))] = holder.pop(last)
        elif action == "wrap":
            holder[last] = draw(st.sampled_from([[value], {"value": value}, [value, value], str(value)]))
        else:
            holder[last] = draw(NASTY)
    return study


def check(path: Path) -> str | None:
    """Run `effllm check`; the message on a refusal, None for a valid study."""
    stderr = io.StringIO()
    began = time.process_time()
    with pytest.raises(SystemExit) as ended, redirect_stderr(stderr), redirect_stdout(io.StringIO()):
        main(["check", str(path)])
    # Of CPU time, so that a busy machine cannot fail it: a linear check takes a tenth of this.
    assert time.process_time() - began < 2
    if not ended.value.code:
        return None
    assert ended.value.code == EXIT_USER_ERROR
    message = stderr.getvalue()
    assert message.startswith("error: ")
    assert message.count("\n") == 1 and message.endswith(".\n"), message
    assert len(message) <= 400 + len("error: \n"), message
    return message


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(study=mutated_studies())
def test_a_mutated_study_is_valid_or_refused_in_one_line(tmp_path_factory: Any, study: Any) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "study.yaml"
    path.write_text(yaml.dump(study, Dumper=yaml.CSafeDumper, allow_unicode=True))
    if check(path) is None:
        graph = Graph(load_study(path))
        for stage in STAGES:
            for id in graph.ids(stage):
                assert graph.spec(stage, id)["stage"] == stage


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_bytes_are_valid_or_refused_in_one_line(tmp_path_factory: Any, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TINY)))
    length = data.draw(st.integers(0, 40))
    path = tmp_path_factory.mktemp("fuzz") / "study.yaml"
    path.write_bytes(TINY[:start] + data.draw(st.binary(max_size=40)) + TINY[start + length :])
    check(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: caf\xe9".encode("latin-1"), "byte 0xe9 is not UTF-8"),
        ("name: x".encode("utf-16"), "text in UTF-16"),
        (b"\x7fELF\0\0", "binary"),
        (b"[" * 3000, "nests deeper"),
        (b"a: " + b"[" * 100_000 + b"]" * 100_000, "nests deeper"),
        (b"[a, b]: 1", "cannot be a key"),
        (b"{a: b}: 1", "cannot be a key"),
        (b"x: " + b"9" * 5000, "cannot be read"),
        (b"x: 0x" + b"f" * 9000, "integer of about"),
        (b"x: 2026-99-99", "cannot be read"),
        (b"x: &a [*a]", "contains itself"),
        (
            b"".join(
                b"x%d: &x%d [%s]\n" % (i, i, b", ".join([b"*x%d" % (i - 1)] * 10) if i else b"1") for i in range(9)
            ),
            "",
        ),
        (b"", "holds no study"),
        (b"- a", "holds no study"),
        (b"x: !!python/object:os.system {}", "not valid YAML"),
        (b"x" * 3_000_000, "larger than"),
        (b"1: a\nnull: b", "is not text"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value or "aliases",
)
def test_what_is_not_a_study_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    message = check(path)
    assert message is not None and expected in message
    assert "study.yaml" in message


def test_a_misspelt_section_is_not_quoted_whole(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(TINY.replace(b"\npretraining:", b"\npretrainig:"))
    message = check(path)
    assert message is not None and "pretrainig" in message and "'pretraining'" in message


def test_many_errors_cost_no_more_than_one(tmp_path: Path) -> None:
    study = copy.deepcopy(STUDY)
    for run in study["pretraining"].values():
        run["sead"] = 1
        run["architecture"]["hiden"] = 2
    path = tmp_path / "study.yaml"
    path.write_text(yaml.dump(study, Dumper=yaml.CSafeDumper))
    message = check(path)
    assert message is not None and " more." in message
