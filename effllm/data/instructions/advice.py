"""What a row holds, and what to write into the study to have it read."""

from collections.abc import Mapping, Sequence
from typing import Any

from effllm.data.instructions.settings import Columns
from effllm.data.instructions.turns import images_of
from effllm.fields import shortened

_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat")
_QUESTIONS = ("prompt", "instruction", "question", "query", "problem")
_ANSWERS = ("response", "completion", "output", "answer", "solution")
_REASONINGS = ("reasoning", "complex_cot", "thinking", "thought", "cot")
_IMAGES = ("image", "images", "imgname", "image_path", "img", "picture")
_MOST_NAMES = 20


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(shortened(name) for name in names[:_MOST_NAMES]) + more or "none"


def columns_of(names: Sequence[str]) -> dict[str, str] | None:
    """What `source.columns` should be for a dataset with these columns; None where their names do not tell."""
    chat = _known(names, _CHATS)
    if chat:
        return {"kind": "chat", "messages": chat}
    question, answer = _known(names, _QUESTIONS), _known(names, _ANSWERS)
    if not question or not answer:
        return None
    keys = {"prompt": question, "input": _known(names, ("input",)), "reasoning": _known(names, _REASONINGS)}
    return {"kind": "prompt_response", **{key: name for key, name in keys.items() if name}, "response": answer}


def advice(names: Sequence[str]) -> str:
    """How to write what `columns_of` found."""
    columns = columns_of(names)
    if columns is None:
        return "name those that hold the conversation in source.columns"
    image = image_column(names)
    keys = columns if image is None else columns | {"image": image}
    return f"write source.columns: {{{', '.join(f'{key}: {name}' for key, name in keys.items())}}}"


def image_column(names: Sequence[str]) -> str | None:
    """The column that by its name has images; None where there is none."""
    return _known(names, _IMAGES)


def described(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """What these columns of a row are."""
    return ", ".join(f"{shortened(name)} {_described(row[name])}" for name in columns if name in row) or (
        f"the columns {listed(list(row))}"
    )


def remedy_for(row: Mapping[str, Any], columns: Columns) -> str:
    """What to do about a row that is no conversation."""
    for name in columns.names() if columns.image is None else ():
        if images_of(row.get(name)):
            return f"add image: {shortened(name)} to source.columns, and its parts that are images are read"
    return "correct source.columns or the data"


def _described(value: Any) -> str:
    if isinstance(value, list) and value:
        return f"a list whose first item is {_described(value[0])}"
    if isinstance(value, Mapping):
        return f"an object with the keys {listed(list(value))}"
    return shortened(value)


def _known(names: Sequence[str], candidates: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in candidates if name in lower), None)
