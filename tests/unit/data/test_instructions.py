"""Instruction data: published forms, local files, the embedded questions, and what becomes of unusable rows."""

import codecs
import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instruction_files import CHAT, PAIRS, Prepare, chat, conversations, pair, samples

from effllm.data.instructions.samples import Message
from effllm.data.instructions.settings import Instructions
from effllm.errors import UserError
from effllm.runtime.artifact import Artifact
from tests.hub.server import Hub, Truncate
from tests.json_lines import lines, write_lines

# Published forms: the files are laid out as on the hub.


def test_openo1_in_its_published_columns(hub: Hub, prepare: Prepare) -> None:
    rows = [
        {
            "instruction": f"Wie viel ist {n} + 1? 答",
            "output": f"<Thought>\n{n}\n</Thought>\n<Output>\n{n + 1}\n</Output>",
        }
        for n in range(30)
    ]
    readme = b"---\nlicense: apache-2.0\nlanguage:\n- en\n- zh\n---\n# SFT data\n"
    revision = hub.add("dataset", "O1-OPEN/OpenO1-SFT", {"OpenO1-SFT.jsonl": lines(rows), "README.md": readme})
    columns = PAIRS | {"prompt": "instruction", "response": "output"}
    hub.fault("/resolve/.*jsonl", Truncate(after=500))
    found = prepare({"kind": "hub", "repo": "O1-OPEN/OpenO1-SFT", "revision": revision, "columns": columns})
    assert conversations(found) == {
        (Message("user", row["instruction"]), Message("assistant", row["output"])) for row in rows
    }


def test_the_copy_of_openo1_by_llamafactory_has_other_columns(hub: Hub, prepare: Prepare) -> None:
    revision = hub.add("dataset", "llamafactory/OpenO1-SFT", {"OpenO1-SFT-Pro.jsonl": lines(map(pair, range(30)))})
    source = {"kind": "hub", "repo": "llamafactory/OpenO1-SFT", "revision": revision, "columns": PAIRS}
    assert prepare(source).json("instructions.json")["seen"] == 30


@pytest.mark.parametrize(("name", "question"), [("en", "A patient, {}?"), ("zh", "患者 {}。")])
def test_medical_o1_in_its_published_columns_and_configurations(
    hub: Hub, prepare: Prepare, name: str, question: str
) -> None:
    repo = "FreedomIntelligence/medical-o1-reasoning-SFT"
    files = {}
    for file, text in {"medical_o1_sft.json": "A patient, {}?", "medical_o1_sft_Chinese.json": "患者 {}。"}.items():
        rows = [{"Question": text.format(n), "Complex_CoT": f"Hmm, {n}.", "Response": f"It is {n}."} for n in range(30)]
        files[file] = json.dumps(rows, ensure_ascii=False, indent=2).encode()
    files["README.md"] = (
        b"---\nconfigs:\n"
        b"- config_name: en\n  data_files:\n  - split: train\n    path: medical_o1_sft.json\n"
        b"- config_name: zh\n  data_files:\n  - split: train\n    path: medical_o1_sft_Chinese.json\n---\n"
    )
    revision = hub.add("dataset", repo, files)
    columns = PAIRS | {"prompt": "Question", "reasoning": "Complex_CoT", "response": "Response"}
    source = {"kind": "hub", "repo": repo, "name": name, "revision": revision, "columns": columns}
    assert conversations(prepare(source)) == {
        (
            Message("user", question.format(n)),
            Message("assistant", f"## Thinking\n\nHmm, {n}.\n\n## Final Response\n\nIt is {n}."),
        )
        for n in range(30)
    }


def test_a_hub_dataset_without_the_named_columns_is_named_with_those_it_has(hub: Hub, prepare: Prepare) -> None:
    revision = hub.add("dataset", "owner/name", {"data.jsonl": lines([{"question": "a", "response": "b"}])})
    source = {"kind": "hub", "repo": "owner/name", "revision": revision, "columns": PAIRS}
    with pytest.raises(UserError, match=r"no column 'prompt'; its columns are 'question', 'response'"):
        prepare(source)


def test_a_gated_dataset_says_how_to_get_it(hub: Hub, prepare: Prepare) -> None:
    revision = hub.add("dataset", "owner/name", {"data.jsonl": lines([pair(1)])}, "gated")
    source = {"kind": "hub", "repo": "owner/name", "revision": revision, "columns": PAIRS}
    with pytest.raises(
        UserError, match=r"dataset owner/name is gated: accept its licence at http.*/datasets/owner/name"
    ):
        prepare(source)


# Local files.


def test_every_file_form_gives_the_same_samples(tmp_path: Path, prepare_files: Prepare) -> None:
    rows = [pair(n) for n in range(50)]
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    array = tmp_path / "a.json"
    array.write_text(json.dumps(rows))
    forms = [
        [table],
        [array],
        [write_lines(tmp_path / "a.jsonl", rows)],
        [write_lines(tmp_path / "b.jsonl.gz", rows[:20]), write_lines(tmp_path / "c.jsonl", rows[20:])],
    ]
    found = [prepare_files(paths, PAIRS, id=f"form{index}") for index, paths in enumerate(forms)]
    assert len({json.dumps(a.json("instructions.json")) + repr(samples(a)) for a in found}) == 1
    assert len(samples(found[0])) == 50


def test_chats_keep_their_turns_and_lose_the_space_around_them(tmp_path: Path, prepare_files: Prepare) -> None:
    turns = [
        ("system", " Be brief.\n"),
        ("user", "Hi 0"),
        ("assistant", "\n Hello. "),
        ("user", "Why?"),
        ("assistant", "So."),
    ]
    rows = [chat(*turns), *(chat(("user", f"Hi {n}"), ("assistant", "Hello.")) for n in range(1, 30))]
    found = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], CHAT)
    expected = tuple(Message(role, text.strip()) for role, text in turns)
    assert expected in conversations(found)
    splits = found.json("instructions.json")["splits"]
    assert sum(split["answers"] for split in splits.values()) == 31
    assert sum(split["answer_utf8_bytes"] for split in splits.values()) == 30 * len("Hello.") + len("So.")


def test_a_system_column_may_be_empty_in_single_rows(tmp_path: Path, prepare_files: Prepare) -> None:
    rows = [pair(n, system="Be brief." if n % 2 else None) for n in range(20)]
    del rows[0]["system"]
    found = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], PAIRS | {"system": "system"})
    assert sorted(len(sample.messages) for sample in samples(found)) == [2] * 10 + [3] * 10


def test_reasoning_that_spells_a_placeholder_out_stays_as_it_is(tmp_path: Path, prepare_files: Prepare) -> None:
    rows = [pair(n, thought="see {response} and {reasoning}") for n in range(20)]
    columns = PAIRS | {"reasoning": "thought", "answer": "{response} (because: {reasoning})"}
    found = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], columns)
    answers = {sample.messages[1].content for sample in samples(found)}
    assert answers == {f"{row['response']} (because: {row['thought']})" for row in rows}


@pytest.mark.parametrize("form", ["a.jsonl", "a.json", "a.parquet"])
def test_a_file_without_the_named_columns_is_named_with_those_it_has(
    tmp_path: Path, prepare_files: Prepare, form: str
) -> None:
    path, rows = tmp_path / form, [{"instruction": "a", "response": "b"}]
    if form == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "a.json":
        path.write_text(json.dumps(rows))
    else:
        write_lines(path, rows)
    message = (
        f"{path}: no column 'prompt'; its columns are 'instruction', 'response': write source.columns: "
        "{kind: prompt_response, prompt: instruction, response: response}."
    )
    with pytest.raises(UserError, match=re.escape(message)):
        prepare_files([path], PAIRS)
    assert not (tmp_path / "results" / "instructions" / "sample").exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", b"prompt,response\n", "the ending is unknown"),
        ("a.jsonl.zst", b"", "is compressed (.zst), which is not read here: decompress it, or write .jsonl.gz"),
        ("a.jsonl", b"\xff\xfe{\0", "is text in UTF-16; write it in UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        ("a.json", '[{"prompt": "a"}]'.encode("utf-16-le"), "is text in UTF-16; write it in UTF-8"),
        ("a.jsonl", '{"prompt": "a"}'.encode("utf-32"), "is text in UTF-32; write it in UTF-8"),
        ("a.jsonl", b"\0" * 200, "begins with null bytes"),
        ("a.jsonl", '{"prompt": "é"}'.encode("latin-1"), "line 1 is not JSON text (byte 0xe9 at 12 is not UTF-8)"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "is compressed by gzip; let its name end in .jsonl.gz"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd....", "is compressed by zstd; decompress it (zstd -d)"),
        ("a.jsonl.gz", b'{"prompt": "a"}', "is not compressed by gzip; take .gz off its name"),
        ("a.jsonl", b"PAR1....PAR1", "is a parquet file; let its name end in .parquet"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs and not the data"),
        ("a.json", b"<!DOCTYPE html>", "is a web page and not the data"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON text (it is nested too deeply)"),
        ("a.json", b"[" * 100_000, "is not JSON text (it is nested too deeply)"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "line 1 is not JSON text (Exceeds the limit"),
        ("a.jsonl", b'{"a": NaN}', "line 1 is not JSON text (NaN is no JSON number, null is what was not measured)"),
        ("a.jsonl", b'[{"prompt": "a"}]', "write one object per line; a file that is one list is named .json"),
        ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}', "if it has one object per line, name it .jsonl"),
        ("a.jsonl", b"", "1 files hold no row"),
        ("a.jsonl", b'{"prompt": "cut', "line 1 is not JSON text"),
        ("a.json", b'{"prompt": "a", "response": "b"}', "is not a list of JSON objects"),
        ("a.json", b"[1]", "is not a list of JSON objects"),
        ("a.json", b"[{", "is not JSON text"),
        ("a.parquet", b"PAR1", "is not a whole parquet file"),
    ],
)
def test_a_file_that_is_none_gets_one_sentence(
    tmp_path: Path, prepare_files: Prepare, name: str, content: bytes, complaint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(complaint)) as error:
        prepare_files([path], PAIRS)
    assert str(path) in str(error.value) or not content
    assert len(str(error.value)) < 400


def test_a_mark_at_the_beginning_and_line_ends_of_windows_change_nothing(
    tmp_path: Path, prepare_files: Prepare
) -> None:
    rows = [pair(n) for n in range(30)]
    plain = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], PAIRS, id="a")
    (tmp_path / "b.jsonl").write_bytes(codecs.BOM_UTF8 + lines(rows).replace(b"\n", b"\r\n"))
    (tmp_path / "c.json").write_bytes(codecs.BOM_UTF8 + json.dumps(rows, indent=1).replace("\n", "\r\n").encode())
    for name in ("b.jsonl", "c.json"):
        assert samples(prepare_files([tmp_path / name], PAIRS, id=name)) == samples(plain)


# Rows that cannot be used.


def test_unusable_rows_are_left_out_and_counted_by_reason(tmp_path: Path, prepare_files: Prepare) -> None:
    good = [chat(("user", f"Hi {n}"), ("assistant", "Hello.")) for n in range(40)]
    bad = {
        "not_text": [
            {"messages": None},
            {"messages": "Hi"},
            {"messages": ["Hi"]},
            {},
            chat(("user", 5), ("assistant", "a")),
            chat(("user", [{"type": "image"}]), ("assistant", "a")),
        ],
        "unknown_role": [
            chat(("user", "a"), ("tool", "b"), ("assistant", "c")),
            chat(("observation", "a"), ("gpt", "b")),
        ],
        "role_order": [
            {"messages": []},
            chat(("user", "a")),
            chat(("assistant", "b")),
            chat(("system", "s")),
            chat(("user", "a"), ("user", "b"), ("assistant", "c")),
            chat(("user", "a"), ("system", "s"), ("assistant", "c")),
            chat(("user", "a"), ("assistant", "b"), ("user", "c")),
        ],
        "empty_message": [chat(("user", "a"), ("assistant", " \n")), chat(("user", ""), ("assistant", "b"))],
        "duplicate": [good[0], chat(("user", " Hi 1"), ("assistant", "Hello.\n"))],
    }
    rows = good + [row for rejected in bad.values() for row in rejected]
    counts = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], CHAT).json("instructions.json")
    assert counts["dropped"] == {reason: len(rejected) for reason, rejected in bad.items()}
    assert counts["seen"] == len(rows)
    assert sum(split["samples"] for split in counts["splits"].values()) == len(good)


def test_reasoning_that_is_missing_or_empty_makes_a_row_unusable(tmp_path: Path, prepare_files: Prepare) -> None:
    rows = [pair(n, thought="Hm.") for n in range(20)] + [pair(20, thought=None), pair(21, thought=" "), pair(22)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    counts = prepare_files([path], PAIRS | {"reasoning": "thought"}).json("instructions.json")
    assert (counts["dropped"]["not_text"], counts["dropped"]["empty_message"]) == (2, 1)


def test_data_without_one_usable_row_is_an_error_with_the_reasons(tmp_path: Path, prepare_files: Prepare) -> None:
    path = write_lines(tmp_path / "a.jsonl", [pair(1, response=""), pair(2, response=None)])
    with pytest.raises(UserError, match=r"none of the 2 rows of 1 files can be used \(not_text 1, empty_message 1\)"):
        prepare_files([path], PAIRS)


def test_an_empty_side_of_the_split_is_an_error(tmp_path: Path, prepare_files: Prepare) -> None:
    path = write_lines(tmp_path / "a.jsonl", [pair(n) for n in range(5)])
    with pytest.raises(
        UserError, match=r"the held-out split of 1 files is empty: held_out_fraction 0.001 of 5 samples"
    ):
        prepare_files([path], PAIRS, held_out_fraction=0.001)


# Split and ids.


def test_the_split_depends_on_nothing_but_the_prompt(tmp_path: Path, prepare_files: Prepare) -> None:
    rows = [pair(n) for n in range(300)]
    first = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], PAIRS, id="a")
    others = [pair(n, response="Another answer.") for n in range(299, 49, -1)] + [pair(n) for n in range(300, 350)]
    second = prepare_files([write_lines(tmp_path / "b.jsonl", others)], PAIRS, id="b")
    sides = [
        {sample.id: split for split in ("train", "held_out") for sample in samples(artifact, split)}
        for artifact in (first, second)
    ]
    common = sides[0].keys() & sides[1].keys()
    assert len(common) == 250
    assert all(sides[0][id] == sides[1][id] for id in common)
    assert 30 <= sum(side == "held_out" for side in sides[0].values()) <= 90


def test_one_prompt_with_several_answers_is_on_one_side_under_several_ids(
    tmp_path: Path, prepare_files: Prepare
) -> None:
    rows = [pair(n % 40, response=f"Answer {n}.") for n in range(120)]
    found = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], PAIRS)
    by_side = {split: samples(found, split) for split in ("train", "held_out")}
    prompts = [{sample.messages[0] for sample in side} for side in by_side.values()]
    assert not prompts[0] & prompts[1] and sum(map(len, prompts)) == 40
    ids = [sample.id for side in by_side.values() for sample in side]
    assert len(set(ids)) == 120
    assert {id.partition("#")[2] for id in ids} == {"", "2", "3"}


def test_more_held_out_keeps_what_was_held_out(tmp_path: Path, prepare_files: Prepare) -> None:
    path = write_lines(tmp_path / "a.jsonl", [pair(n) for n in range(200)])
    small, large = (
        {sample.id for sample in samples(prepare_files([path], PAIRS, id=f"f{f}", held_out_fraction=f), "held_out")}
        for f in (0.1, 0.3)
    )
    assert small < large


def test_a_budget_takes_the_first_training_samples(tmp_path: Path, prepare_files: Prepare) -> None:
    path = write_lines(tmp_path / "a.jsonl", [pair(n) for n in range(200)])
    everything = prepare_files([path], PAIRS, id="all")
    part = prepare_files([path], PAIRS, id="part", maximum_samples=50)
    assert samples(part, "train") == samples(everything, "train")[:50]
    assert part.json("instructions.json")["budget_met"] is True
    assert prepare_files([path], PAIRS, id="more", maximum_samples=500).json("instructions.json")["budget_met"] is False


# The embedded questions.


@pytest.mark.slow
def test_the_embedded_sets_are_distinct_and_have_a_few_thousand_samples_each(prepare: Prepare) -> None:
    sets = {
        questions: prepare({"kind": "embedded", "questions": questions}, id=questions)
        for questions in ("describe", "name")
    }
    for artifact in sets.values():
        counts = artifact.json("instructions.json")
        assert 2000 < counts["splits"]["train"]["samples"] < 8000
        assert counts["splits"]["held_out"]["samples"] > 300
        assert not any(counts["dropped"].values())
    prompts = [{sample.messages[0].content for sample in samples(artifact)} for artifact in sets.values()]
    assert not prompts[0] & prompts[1]
    describe, name = (
        {sample.messages[0].content: sample.messages[1].content for sample in samples(artifact)}
        for artifact in sets.values()
    )
    assert describe["What does the function `json.dumps` do?"] == "Serialize ``obj`` to a JSON formatted ``str``."
    asked = "{} is described by this summary?\n{}"
    summary = "Remove any common leading whitespace from every line in `text`."
    assert name[asked.format("Which function of `textwrap`", summary)] == "`dedent(text)`"
    summary = "Compare two sequences of lines; generate the resulting delta."
    assert name[asked.format("Which method of `difflib.Differ`", summary)] == "`compare(a, b)`"


@pytest.mark.parametrize("source", ["files", pytest.param("embedded", marks=pytest.mark.slow)])
def test_two_builds_give_the_same_manifest(
    source: str, tmp_path: Path, prepare: Prepare, prepare_files: Prepare
) -> None:
    def build() -> Artifact:
        if source == "embedded":
            return prepare({"kind": "embedded", "questions": "name"}, id="embedded")
        path = write_lines(tmp_path / "a.jsonl", [pair(n) for n in range(2500)])
        return prepare_files([path], PAIRS, id="files")

    first = build()
    manifest = (first.directory / "manifest.json").read_bytes()
    for file in first.directory.iterdir():
        if file.is_file():
            file.unlink()
    assert (build().directory / "manifest.json").read_bytes() == manifest


def test_the_answer_of_a_reasoning_dataset_must_hold_both_parts() -> None:
    columns = PAIRS | {"reasoning": "thought", "answer": "{response}"}
    source = {"kind": "files", "paths": ["a.jsonl"], "columns": columns}
    with pytest.raises(ValueError, match=r"answer '\{response\}' must hold \{reasoning\} exactly once"):
        Instructions.model_validate({"source": source, "held_out_fraction": 0.1})
