"""Forms in which datasets write conversations, and what is said of those that are not known."""

import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instruction_files import CHAT, PAIRS, Prepare, conversations, pair, samples

from effllm.data.instructions.prepare import prepare
from effllm.data.instructions.samples import Message
from effllm.data.instructions.settings import Instructions
from effllm.data.instructions.sources import open_source
from effllm.errors import UserError
from tests.json_lines import write_lines

TALK = [("system", "Be brief."), ("user", "Hi {}"), ("assistant", "Hello.")]
SHARE = {"system": "system", "user": "human", "assistant": "gpt"}


def _openai(turns):
    return [{"role": role, "content": text} for role, text in turns]


FORMS = {
    "messages": lambda turns: {"messages": _openai(turns)},
    "capitals": lambda turns: {"messages": [{"role": role.upper(), "content": text} for role, text in turns]},
    "ShareGPT": lambda turns: {"messages": [{"from": SHARE[role], "value": text} for role, text in turns]},
    "ShareGPT with other names": lambda turns: {
        "messages": [{"from": {"assistant": "chatgpt"}.get(role, role), "value": text} for role, text in turns]
    },
    "its roles in messages": lambda turns: {
        "messages": [{"role": SHARE[role], "content": text} for role, text in turns]
    },
    "parts": lambda turns: {
        "messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    },
    "several parts": lambda turns: {
        "messages": [
            {"role": role, "content": [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]}
            for role, text in turns
        ]
    },
    "text in JSON": lambda turns: {"messages": json.dumps(_openai(turns))},
    "messages in JSON": lambda turns: {"messages": [json.dumps(message) for message in _openai(turns)]},
    "lists by key": lambda turns: {
        "messages": {"role": [role for role, _ in turns], "content": [text for _, text in turns]}
    },
    "a system column": lambda turns: {"messages": _openai(turns[1:]), "system": turns[0][1]},
}


@pytest.mark.parametrize("file", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_common_forms_give_the_same_conversations(tmp_path: Path, prepare_files: Prepare, form: str, file: str) -> None:
    talks = [[(role, text.format(n)) for role, text in TALK] for n in range(30)]
    rows = [FORMS[form](talk) for talk in talks]
    if file == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / file)
    else:
        write_lines(tmp_path / file, rows)
    columns = CHAT | ({"system": "system"} if form == "a system column" else {})
    found = prepare_files([tmp_path / file], columns)
    assert conversations(found) == {tuple(Message(role, text) for role, text in talk) for talk in talks}


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"response": "completion"}, {"prompt": "Q {}", "completion": "A."}),
        ({"prompt": "instruction", "input": "input", "response": "output"}, {"instruction": "Q {}", "output": "A."}),
        (
            {"response": "completion"},
            {"prompt": [{"role": "user", "content": "Q {}"}], "completion": [{"role": "assistant", "content": "A."}]},
        ),
        (
            {},
            {"prompt": [{"type": "text", "text": "Q {}"}], "response": [{"text": "A"}, {"type": "text", "text": "."}]},
        ),
    ],
)
def test_common_forms_of_pairs_give_the_same_conversations(tmp_path, prepare_files, columns, row) -> None:
    rows = [json.loads(json.dumps(row).replace("{}", str(n))) for n in range(30)]
    found = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], PAIRS | columns)
    assert conversations(found) == {(Message("user", f"Q {n}"), Message("assistant", "A.")) for n in range(30)}


def test_an_input_follows_its_instruction_where_it_has_text(tmp_path: Path, prepare_files: Prepare) -> None:
    rows = [{"instruction": f"Add {n}.", "input": f"{n}" if n % 2 else "", "output": "A."} for n in range(30)]
    columns = PAIRS | {"prompt": "instruction", "input": "input", "response": "output"}
    found = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], columns)
    prompts = {messages[0].content for messages in conversations(found)}
    assert prompts == {f"Add {n}.\n\n{n}" if n % 2 else f"Add {n}." for n in range(30)}


@pytest.mark.parametrize("first", [True, False])
def test_one_row_without_the_column_is_counted_wherever_it_is(
    tmp_path: Path, prepare_files: Prepare, first: bool
) -> None:
    rows = [pair(n) for n in range(30)]
    rows.insert(0 if first else 30, {"other": "x"})
    counts = prepare_files([write_lines(tmp_path / "a.jsonl", rows)], PAIRS).json("instructions.json")
    assert counts["dropped"]["not_text"] == 1 and counts["seen"] == 31


def test_a_file_most_of_whose_rows_lack_the_column_is_refused(tmp_path: Path, prepare_files: Prepare) -> None:
    rows = [pair(1), pair(2), *({"conversations": [], "id": n} for n in range(3))]
    with pytest.raises(UserError, match=r"no column 'prompt', 'response'; its columns are 'conversations', 'id'"):
        prepare_files([write_lines(tmp_path / "a.jsonl", rows)], PAIRS)


@pytest.mark.parametrize(
    ("columns", "written"),
    [
        (("id", "conversations"), "{kind: chat, messages: conversations}"),
        (("Question", "Complex_CoT", "Response"), "prompt: Question, reasoning: Complex_CoT, response: Response}"),
        (("instruction", "input", "output"), "{kind: prompt_response, prompt: instruction, input: input, response: ou"),
        (("prompt", "completion"), "{kind: prompt_response, prompt: prompt, response: completion}"),
        (("a", "b"), "name those that hold the conversation in source.columns"),
    ],
)
def test_what_to_write_is_said(tmp_path: Path, prepare_files: Prepare, columns, written: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [dict.fromkeys(columns, "x")])
    with pytest.raises(UserError, match=re.escape(written)):
        prepare_files([path], CHAT)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"messages": [{"speaker": "a", "utterance": "b"}]},
            "a list whose first item is an object with the keys 'spe",
        ),
        ({"messages": "Hi there"}, "'messages' 'Hi there'"),
        ({"messages": 10**30}, "'messages' 1000000000000000000000000000000"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "(unknown_role 1)"),
        ({"messages": [{"role": "user", "content": ["one answer", "another"]}]}, "(not_text 1)"),
    ],
)
def test_rows_of_no_known_form_are_shown(tmp_path: Path, prepare_files: Prepare, row, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        prepare_files([write_lines(tmp_path / "a.jsonl", [row])], CHAT)
    assert "correct source.columns" in str(raised.value)


@pytest.mark.parametrize("type", [pa.binary(), pa.int64(), pa.timestamp("ns"), pa.decimal128(5, 2)])
def test_a_column_that_can_hold_no_text_is_refused_with_its_type(tmp_path: Path, prepare_files: Prepare, type) -> None:
    table = pa.table({"prompt": pa.array([None] * 3, type), "response": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=re.escape(f"column 'prompt' has type {type}, which holds no text")):
        prepare_files([tmp_path / "a.parquet"], PAIRS)


@pytest.mark.parametrize("type", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_text_of_any_layout_is_read(tmp_path: Path, prepare_files: Prepare, type) -> None:
    prompts = pa.array([f"Q {n}" for n in range(30)])
    table = pa.table({"prompt": prompts.cast(type), "response": ["a"] * 30})
    pq.write_table(table, tmp_path / "a.parquet")
    assert len(samples(prepare_files([tmp_path / "a.parquet"], PAIRS))) == 30


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes with a few changed, cut, doubled or in another encoding."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        content = rng.choice(
            [
                content[:at],
                content[at:],
                content[:at] + bytes(rng.choices((0, 10, 34, 91, 123, 255), k=9)) + content[at:],
                content[:at] + content[at + rng.randrange(40) :],
                content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
                content[:at] + content,
                content.decode("latin-1").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])),
            ]
        )
    return content


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = [FORMS["messages"]([(role, text.format(n)) for role, text in TALK]) for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    write_lines(tmp_path / "a.jsonl", rows)
    write_lines(tmp_path / "b.jsonl.gz", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    source = {"kind": "files", "paths": ["a.jsonl"], "columns": CHAT}
    config = Instructions.model_validate({"source": source, "held_out_fraction": 0.2})
    output = tmp_path / "output"
    output.mkdir()
    refused = 0
    for _ in range(80):
        path, content = rng.choice(list(whole.items()))
        path.write_bytes(_damaged(content, rng))
        try:
            prepare(open_source(config.source, {"files[0]": path}, tmp_path), config, output)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 20
