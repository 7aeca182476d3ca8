"""From the rows of a dataset to conversations: which columns hold what, and why a row cannot be used."""

from collections.abc import Mapping
from typing import Any

from effllm.data.instructions.samples import Message
from effllm.study.instructions import ChatColumns, Columns, PromptResponseColumns

REASONS = ("not_text", "unknown_role", "role_order", "empty_message")
"""not_text: a needed value is missing, null or no text. unknown_role: not system, user or assistant. role_order: not
an optional system message, then user and assistant in turn, the assistant last. empty_message: a turn without text."""


class UnusableRowError(Exception):
    """This row cannot become a sample; the argument is one of `REASONS`."""


def messages_of(row: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    """The conversation in `row`, space around each turn's text removed; `UnusableRowError` if there is none."""
    turns = _chat_turns(row, columns) if isinstance(columns, ChatColumns) else _question_and_answer(row, columns)
    messages = tuple(Message(role, text.strip()) for role, text in turns)
    roles = [message.role for message in messages]
    if not set(roles) <= {"system", "user", "assistant"}:
        raise UnusableRowError("unknown_role")
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise UnusableRowError("role_order")
    if not all(message.content for message in messages):
        raise UnusableRowError("empty_message")
    return messages


def _chat_turns(row: Mapping[str, Any], columns: ChatColumns) -> list[tuple[Any, str]]:
    turns = row.get(columns.messages)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UnusableRowError("not_text")
    return [(_text(turn, "role"), _text(turn, "content")) for turn in turns]


def _question_and_answer(row: Mapping[str, Any], columns: PromptResponseColumns) -> list[tuple[Any, str]]:
    answer = _text(row, columns.response)
    if columns.reasoning is not None:
        parts = {"{reasoning}": _text(row, columns.reasoning), "{response}": answer}
        if not all(part.strip() for part in parts.values()):
            raise UnusableRowError("empty_message")
        # Split, not replaced one after the other: the reasoning may itself spell "{response}" out.
        first, second = sorted(parts, key=columns.answer.index)
        before, _, rest = columns.answer.partition(first)
        between, _, after = rest.partition(second)
        answer = f"{before}{parts[first].strip()}{between}{parts[second].strip()}{after}"
    turns = [("user", _text(row, columns.prompt)), ("assistant", answer)]
    # A system message is the exception that a row may do without.
    if columns.system is not None and row.get(columns.system) not in (None, ""):
        turns.insert(0, ("system", _text(row, columns.system)))
    return turns


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UnusableRowError("not_text")
    return value
