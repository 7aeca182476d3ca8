"""The forms in which datasets write a conversation, as pairs of role and text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# OpenAI's and ShareGPT's keys, and mixtures of both.
_ROLE_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value", "text")
_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
}
_TEXT_PARTS = (None, "text", "input_text", "output_text")
# Parts that are images, and the keys under which they may have them.
_IMAGE_PARTS = ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image", "image_url", "path", "url")
IMAGE_MARK = "<image>"
"""What stands for an image in the texts of LLaVA's data and of many others; parts that are images become it."""


class NoTextError(Exception):
    """A value is not the text, or not the conversation, that it should be."""


def turns_of(value: Any, has_images: bool = False) -> list[tuple[str, str]]:
    """Role and text of each turn; roles by their common names are system, user, assistant, others stay as they are.

    `value` is a list of messages or its JSON text, messages by themselves as JSON text, or one list for each key, as
    `datasets` makes of a sequence of structures. A message has a role (or from) and a content (value, text): text, or
    a list of parts that are all text, or images where samples have one. `NoTextError` for anything else.
    """
    return [_turn(message, has_images) for message in _messages(value)]


def images_of(value: Any) -> list[Any]:
    """What the image parts of a conversation, or of a list of parts, hold: None for one that marks a place."""
    try:
        messages = _messages(value)
    except NoTextError:
        return []
    if not is_conversation(messages):
        messages = [{"content": messages}]
    contents = (_first(message, _TEXT_KEYS) for message in messages if isinstance(message, Mapping))
    parts = (part for content in contents if isinstance(content, list) for part in content if _is_image(part))
    return [_first(part, _IMAGE_KEYS) for part in parts]


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, and not a text or its parts."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and any(key in first for key in _ROLE_KEYS)


def text_of(value: Any, has_images: bool = False) -> str:
    """A text, or the texts of a list of parts one after the other; `NoTextError` for anything else.

    Where samples have images, parts that are images are marks of their places.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise NoTextError
    return "".join(f"{IMAGE_MARK}\n" if has_images and _is_image(part) else _part(part) for part in value)


def _messages(value: Any) -> list[Any]:
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        value = _by_message(value)
    if not isinstance(value, list):
        raise NoTextError
    return [_parsed(message) if isinstance(message, str) else message for message in value]


def _turn(message: Any, has_images: bool) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise NoTextError
    role = _first(message, _ROLE_KEYS)
    if not isinstance(role, str):
        raise NoTextError
    named = role.strip().lower()
    named = _ROLES.get(named, named)
    return named, text_of(_first(message, _TEXT_KEYS), has_images and named == "user")


def _part(part: Any) -> str:
    # A list of plain texts is one of alternatives as often as one of parts, so it is neither.
    if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    raise NoTextError


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS


def _first(message: Mapping[str, Any], keys: Sequence[str]) -> Any:
    # A table has every key in every row, the unused ones null.
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _by_message(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = {key: values for key, values in columns.items() if isinstance(values, list)}
    if len({len(values) for values in lists.values()}) != 1:
        raise NoTextError
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NoTextError from None
