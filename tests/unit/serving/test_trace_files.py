"""Azure's and Mooncake's traces, read and refused."""

from pathlib import Path
from typing import Literal

import pytest

from effllm.errors import UserError
from effllm.serving.load import TraceFile
from effllm.serving.trace_files import Recorded, read_trace

# First lines of AzureLLMInferenceTrace_code.csv and conversation_trace.jsonl.
_AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:04.0781490,110,27
"""
_MOONCAKE = """{"timestamp": 0, "input_length": 2290, "output_length": 316, "hash_ids": [0, 42, 43, 44, 45]}
{"timestamp": 3000, "input_length": 915, "output_length": 355, "hash_ids": [0, 462]}
"""


def _read(path: Path, text: str, format: Literal["azure", "mooncake"], requests: int = 2) -> list[Recorded]:
    path.write_text(text, errors="surrogateescape", newline="")
    trace = TraceFile(format=format, path=str(path), most_prompt_tokens=4000, most_output_tokens=400)
    return read_trace(trace, requests)


def test_azure_requests_count_from_the_first_that_is_taken(tmp_path: Path) -> None:
    found = _read(tmp_path / "a.csv", _AZURE, "azure")
    # The first one is too long. Times are to a microsecond.
    assert [(one.prompt_tokens, one.output_tokens) for one in found] == [(3180, 8), (110, 27)]
    assert [one.time_s for one in found] == pytest.approx([0, 0.046189])


def test_mooncake_requests_have_blocks(tmp_path: Path) -> None:
    found = _read(tmp_path / "m.jsonl", _MOONCAKE, "mooncake")
    assert found == [Recorded(0, 2290, 316, (0, 42, 43, 44, 45)), Recorded(3, 915, 355, (0, 462))]


def test_requests_without_tokens_are_left_out(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2024-05-10 00:00:0{second}+00:00,{tokens}\n" for second, tokens in enumerate(("0,3", "3,0", "5,6", "7,8"))
    )
    assert _read(tmp_path / "a.csv", text, "azure") == [Recorded(0, 5, 6), Recorded(1, 7, 8)]


@pytest.mark.parametrize("format", ["azure", "mooncake"])
def test_a_mark_of_the_byte_order_and_other_ends_of_line_change_nothing(
    tmp_path: Path, format: Literal["azure", "mooncake"]
) -> None:
    text = _AZURE if format == "azure" else _MOONCAKE
    changed = "\ufeff" + text.replace("\n", "\r\n")
    assert _read(tmp_path / "changed", changed, format) == _read(tmp_path / "plain", text, format)


def test_too_few_requests_are_told_by_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 2 requests within .* 400, of 3 in all, and 9 are wanted: raise the lim"):
        _read(tmp_path / "a.csv", _AZURE, "azure", requests=9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no request: download it again, or name another file in trace.path"),
        (_AZURE[:40], "holds no request"),
        (_AZURE.replace(",", ";"), "line 1: its columns are not separated by commas; write it with commas"),
        ('"' + _AZURE, "line 4: unexpected end of data; correct or delete the line"),
        ("a,b\n1,2\n", "line 1: the header lacks TIMESTAMP, ContextTokens, GeneratedTokens, .* format: mooncake"),
        (_AZURE.replace("04.0319600", "noon"), "line 3: TIMESTAMP is '.*noon', which is no date with a time"),
        (_AZURE.replace("3180", "-3"), "line 3: ContextTokens is '-3', which is no number of tokens"),
        (_AZURE.replace("4808,10", "4808"), "line 2: GeneratedTokens is None, which is no number of tokens"),
        (_AZURE.replace("17:04.03", "17:01.03"), "line 3: the request comes before the one above it; sort"),
        (_AZURE.replace("04.0319600", "04+00:00"), "line 3: TIMESTAMP names a zone, and the first line none"),
        (_AZURE.replace("3180", '"3180'), "line 4: unexpected end of data; correct or delete the line"),
        (_AZURE.replace("3180", "\udcff"), "is no text in UTF-8: download it again, or unpack it"),
    ],
)
def test_damaged_azure_traces_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        _read(tmp_path / "a.csv", text, "azure")
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,a\n", "line 1: 'TIMESTAMP,a' is no JSON object; correct or delete the line"),
        ("\n\n", "holds no request"),
        ("[" * 100_000, "line 1: .* is no JSON object"),
        (_MOONCAKE.replace("3000", "1" + "0" * 400), "line 2: timestamp is an integer of about 401 digits"),
        ("[1]\n", r"line 1: \[1\] is no JSON object"),
        (_MOONCAKE.replace("input", "in"), "line 1: the request lacks input_length, which a Mooncake trace has"),
        (_MOONCAKE.replace("3000", "NaN"), "line 2: timestamp is nan, which is no time in ms"),
        (_MOONCAKE.replace("915", '"many"'), "line 2: input_length is 'many', which is no number of tokens"),
        (_MOONCAKE.replace("915", "true"), "line 2: input_length is True, which is no number of tokens"),
        (
            _MOONCAKE.replace("[0, 462]", "[0]"),
            "line 2: hash_ids has 1 ids, and input_length 915 takes 2",
        ),
        (_MOONCAKE.replace("[0, 462]", "[0, -1]"), r"line 2: hash_ids is \[0, -1\], which is no list of ids"),
    ],
)
def test_damaged_mooncake_traces_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _read(tmp_path / "m.jsonl", text, "mooncake")


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    trace = TraceFile(format="azure", path=str(tmp_path / "none.csv"), most_prompt_tokens=9, most_output_tokens=9)
    with pytest.raises(UserError, match=r"none.csv cannot be read \(No such file or directory\): check trace.path"):
        read_trace(trace, 1)
