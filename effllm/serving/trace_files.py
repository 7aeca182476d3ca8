"""Public traces of requests to language models: when each came, and how long its prompt and its answer were.

Azure's are CSV files with the columns TIMESTAMP (an instant, to 100 ns), ContextTokens and GeneratedTokens, as
AzureLLMInferenceDataset2023.md and ...2024.md of github.com/Azure/AzurePublicDataset describe them. Mooncake's are
JSON lines with timestamp (ms from the trace's start), input_length, output_length and hash_ids, one for each block of
512 tokens of the prompt, as FAST25-release/README.md of github.com/kvcache-ai/Mooncake describes them. Those that this
package has written have the tokens of the prompts themselves (trace.py).
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from effllm.errors import UserError
from effllm.fields import shortened
from effllm.serving.load import TraceFile
from effllm.serving.trace import Trace

BLOCK_TOKENS = 512
_LONGEST_COUNT = 9
_LATEST_MS = 1e15
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOONCAKE = ("timestamp", "input_length", "output_length")


@dataclass(frozen=True)
class Recorded:
    """A request of a trace; `time_s` counts from the trace's first request. blocks: ids of the prompt's blocks."""

    time_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


class _BadLine(Exception):
    """What is wrong with a line, and the remedy."""


def read_trace(trace: TraceFile, requests: int) -> list[Recorded]:
    """The first `requests` requests of a file that are no longer than the study allows, lengths scaled.

    Requests without a prompt or an answer are left out.

    Raises:
        UserError: the file is missing or damaged, or has fewer such requests; one sentence with line and remedy.
    """
    path = Path(trace.path)
    found: list[Recorded] = []
    first: float | None = None
    before = -math.inf
    seen = 0
    try:
        # Spreadsheets put a mark of the byte order before the first line.
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, recorded in _FORMATS[trace.format](path, file):
                seen += 1
                if recorded.time_s < before:
                    raise UserError(
                        f"{path}, line {line}: the request comes before the one above it; sort the lines by time."
                    )
                before = recorded.time_s
                if not recorded.prompt_tokens or not recorded.output_tokens:
                    continue
                scaled = _scaled(recorded, trace.length_factor)
                if scaled.prompt_tokens > trace.most_prompt_tokens or scaled.output_tokens > trace.most_output_tokens:
                    continue
                first = recorded.time_s if first is None else first
                found.append(Recorded(scaled.time_s - first, scaled.prompt_tokens, scaled.output_tokens, scaled.blocks))
                if len(found) == requests:
                    return found
    except OSError as error:
        raise UserError(f"The trace {path} cannot be read ({error.strerror}): check trace.path.") from None
    except UnicodeDecodeError:
        raise UserError(f"The trace {path} is no text in UTF-8: download it again, or unpack it.") from None
    if not seen:
        raise UserError(f"{path} holds no request: download it again, or name another file in trace.path.")
    raise UserError(
        f"{path} has {len(found)} requests within trace.most_prompt_tokens {trace.most_prompt_tokens} and "
        f"trace.most_output_tokens {trace.most_output_tokens}, of {seen} in all, and {requests} are wanted: raise the "
        "limits, lower trace.length_factor or requests, or saturation.maximum_concurrency if a closed loop wants them."
    )


def read_own_trace(trace: TraceFile, requests: int, vocabulary: int) -> Trace:
    """The first `requests` requests of a trace that this package has written, each as it was sent.

    Raises:
        UserError: the file is missing or damaged, or has fewer; or a request is longer than the study allows, or has a
            token that a model of so many words has not.
    """
    path = Path(trace.path)
    found = Trace.read(path)
    if len(found.requests) < requests:
        raise UserError(
            f"{path} has {len(found.requests)} requests, and warmup_requests and requests are {requests} together: "
            "state those of the study that it is from."
        )
    for request in (taken := found.requests[:requests]):
        lengths = {"most_prompt_tokens": len(request.prompt), "most_output_tokens": request.output_tokens}
        for key, length in lengths.items():
            if length > getattr(trace, key):
                raise UserError(
                    f"{path}: request {request.index} has {length} tokens, above trace.{key} {getattr(trace, key)}; "
                    "raise it."
                )
        if max(request.prompt) >= vocabulary:
            raise UserError(
                f"{path}: request {request.index} has the token {max(request.prompt)}, and the model {vocabulary} "
                "words; replay it to models of one vocabulary."
            )
    return Trace(taken, found.concurrency)


def _scaled(recorded: Recorded, factor: float) -> Recorded:
    def length(tokens: int) -> int:
        return max(1, round(tokens * factor))

    return Recorded(recorded.time_s, length(recorded.prompt_tokens), length(recorded.output_tokens), recorded.blocks)


def _azure(path: Path, file: TextIO) -> Iterator[tuple[int, Recorded]]:
    reader = csv.DictReader(file, strict=True)
    start: datetime | None = None
    try:
        if (names := reader.fieldnames) is None:
            return
        if absent := [name for name in _AZURE if name not in names]:
            if all(name in ",".join(names) for name in _AZURE):
                raise UserError(f"{path}, line 1: its columns are not separated by commas; write it with commas.")
            raise UserError(
                f"{path}, line 1: the header lacks {', '.join(absent)}, which an Azure trace has; name another file, "
                "or format: mooncake."
            )
        for row in reader:
            moment = _moment(row["TIMESTAMP"])
            start = start or moment
            if (moment.tzinfo is None) != (start.tzinfo is None):
                raise _BadLine("TIMESTAMP names a zone, and the first line none, or the other way round")
            prompt, output = (_count(name, row[name]) for name in ("ContextTokens", "GeneratedTokens"))
            yield reader.line_num, Recorded((moment - start).total_seconds(), prompt, output)
    except (_BadLine, csv.Error) as error:
        # Its own count is of rows that were read whole.
        line = reader.reader.line_num
        raise UserError(f"{path}, line {line}: {error}; correct or delete the line.") from None


def _moment(text: str | None) -> datetime:
    """An instant such as `2023-11-16 18:17:03.9799600`, whose seventh decimal is dropped."""
    try:
        head, point, rest = (text or "").partition(".")
        digits = len(rest) - len(rest.lstrip("0123456789"))
        return datetime.fromisoformat(head + point + rest[: min(digits, 6)] + rest[digits:])
    except ValueError:
        raise _BadLine(f"TIMESTAMP is {shortened(text)}, which is no date with a time") from None


def _mooncake(path: Path, file: TextIO) -> Iterator[tuple[int, Recorded]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield number, _request(line)
        except _BadLine as error:
            raise UserError(f"{path}, line {number}: {error}; correct or delete the line.") from None


def _request(line: str) -> Recorded:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise _BadLine(f"{shortened(line.strip())} is no JSON object") from None
    if not isinstance(content, dict):
        raise _BadLine(f"{shortened(content)} is no JSON object")
    if absent := [name for name in _MOONCAKE if name not in content]:
        raise _BadLine(f"the request lacks {', '.join(absent)}, which a Mooncake trace has")
    moment = content["timestamp"]
    if isinstance(moment, bool) or not isinstance(moment, int | float) or not 0 <= moment <= _LATEST_MS:
        raise _BadLine(f"timestamp is {shortened(moment)}, which is no time in ms from the trace's start")
    prompt, output = (_count(name, content[name]) for name in ("input_length", "output_length"))
    blocks = content.get("hash_ids", [])
    if not isinstance(blocks, list) or not all(isinstance(id, int) and id >= 0 for id in blocks):
        raise _BadLine(f"hash_ids is {shortened(blocks)}, which is no list of ids")
    wanted = math.ceil(prompt / BLOCK_TOKENS)
    if blocks and len(blocks) != wanted:
        raise _BadLine(
            f"hash_ids has {len(blocks)} ids, and input_length {prompt} takes {wanted} blocks of {BLOCK_TOKENS}"
        )
    return Recorded(moment / 1000, prompt, output, tuple(blocks))


def _count(name: str, value: Any) -> int:
    """A number of tokens, as text in a CSV."""
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.isascii() or not text.isdigit() or len(text) > _LONGEST_COUNT:
        raise _BadLine(f"{name} is {shortened(value)}, which is no number of tokens")
    return int(text)


_FORMATS = {"azure": _azure, "mooncake": _mooncake}
