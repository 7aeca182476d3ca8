"""From the rows of a dataset to conversations: which columns hold what, and why a row cannot be used."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from effllm.data.instructions.samples import Message, Role
from effllm.data.instructions.settings import ChatColumns, Columns, PromptResponseColumns
from effllm.data.instructions.turns import IMAGE_MARK, NoTextError, is_conversation, text_of, turns_of

REASONS = ("not_text", "unknown_role", "role_order", "empty_message")
"""not_text: a needed value is missing, null or no text. unknown_role: not system, user or assistant. role_order: not
an optional system message, then user and assistant in turn, the assistant last. empty_message: a turn without text."""

# With the space by which it is set off.
_MARK = re.compile(f" ?{IMAGE_MARK}\n?")
_ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}


class UnusableRowError(Exception):
    """This row cannot become a sample; the argument is one of `REASONS`."""


def messages_of(row: Mapping[str, Any], columns: Columns) -> tuple[tuple[Message, ...], int]:
    """The conversation in `row`, space around each turn's text removed; `UnusableRowError` if there is none.

    Where rows have images, the number of marks that stood for one in the questions, which are taken out, comes with it.
    """
    try:
        turns = _chat_turns(row, columns) if isinstance(columns, ChatColumns) else _question_and_answer(row, columns)
    except NoTextError:
        raise UnusableRowError("not_text") from None
    if not all(role in _ROLES for role, _ in turns):
        raise UnusableRowError("unknown_role")
    messages, marks = tuple(Message(_ROLES[role], text.strip()) for role, text in turns), 0
    if columns.image is not None:
        marks = sum(message.content.count(IMAGE_MARK) for message in messages if message.role == "user")
        messages = tuple(map(_unmarked, messages))
    roles = [message.role for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise UnusableRowError("role_order")
    if not all(message.content for message in messages):
        raise UnusableRowError("empty_message")
    return messages, marks


def _unmarked(message: Message) -> Message:
    return replace(message, content=_MARK.sub("", message.content).strip()) if message.role == "user" else message


def _chat_turns(row: Mapping[str, Any], columns: ChatColumns) -> list[tuple[str, str]]:
    return _system(row, columns.system) + turns_of(row.get(columns.messages), columns.image is not None)


def _question_and_answer(row: Mapping[str, Any], columns: PromptResponseColumns) -> list[tuple[str, str]]:
    question, answer = row.get(columns.prompt), row.get(columns.response)
    # As TRL has it: both may be lists of messages.
    has_images = columns.image is not None
    if is_conversation(question):
        asked = turns_of(question, has_images)
    else:
        asked = [("user", _with_input(row, text_of(question, has_images), columns))]
    if is_conversation(answer):
        return _system(row, columns.system) + asked + turns_of(answer)
    if has_images and isinstance(answer, list) and answer and isinstance(answer[0], str):
        # Sets of questions about images list the answers that count as right.
        answer = answer[0]
    text = text_of(answer)
    if columns.reasoning is not None:
        parts = {"{reasoning}": text_of(row.get(columns.reasoning)), "{response}": text}
        if not all(part.strip() for part in parts.values()):
            raise UnusableRowError("empty_message")
        # Split, not replaced one after the other: the reasoning may itself spell "{response}" out.
        first, second = sorted(parts, key=columns.answer.index)
        before, _, rest = columns.answer.partition(first)
        between, _, after = rest.partition(second)
        text = f"{before}{parts[first].strip()}{between}{parts[second].strip()}{after}"
    return _system(row, columns.system) + asked + [("assistant", text)]


def _system(row: Mapping[str, Any], column: str | None) -> list[tuple[str, str]]:
    # A system message is the exception that a row may do without.
    value = None if column is None else row.get(column)
    return [] if value in (None, "", []) else [("system", text_of(value))]


def _with_input(row: Mapping[str, Any], question: str, columns: PromptResponseColumns) -> str:
    value = None if columns.input is None else row.get(columns.input)
    given = "" if value is None else text_of(value).strip()
    return f"{question.strip()}\n\n{given}" if given and question.strip() else question
