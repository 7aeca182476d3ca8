"""Read a study from YAML and say in one sentence what is wrong with it."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from effllm.errors import UserError
from effllm.fields import shortened, suggestion
from effllm.study.inheritance import EXTENDS, LIKE, read_study, written_out
from effllm.study.study import Study

_YAML_FLOAT_AS_TEXT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
# A terminal shows so much at a glance. What does not fit is counted.
_LONGEST_MESSAGE = 390
_LONGEST_SENTENCE = 280


def load_study(path: str | Path) -> Study:
    """Read and check the study in `path`; `UserError` names the file, the key, the value and the remedy."""
    return _checked(read_study(path), source=str(path))


def parse_study(raw: Any, source: str) -> Study:
    """Check an already parsed study; `source` names it in errors. Files that it extends are named from here."""
    return _checked(written_out(raw, source, Path.cwd()), source)


def _checked(raw: Any, source: str) -> Study:
    source = source if len(source) < 120 else f"...{source[-117:]}"
    if not isinstance(raw, dict):
        raise UserError(f"{source} holds no study: it must be a mapping with the keys of config/schema.json.")
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise UserError(_message(error.errors(include_url=False), source)) from None


def study_schema() -> dict[str, Any]:
    """The JSON schema of study files, for editors: that of `Study`, with `extends` and entries that are `like` others.

    What an inherited part may hold is not required of the file at hand, so nothing at the top is required, and of an
    entry only where it names no other and the file extends none.
    """
    schema: dict[str, Any] = Study.model_json_schema()
    names = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    extends = {"description": "Studies whose mappings these are merged over; lists and values replace.", **names}
    like = {"type": "string", "description": "Id of the entry that these keys are merged over."}
    inherits = {"type": "object", "properties": {LIKE: like}, "required": [LIKE]}
    changes = {"type": "object", "properties": {LIKE: like}}
    alone: dict[str, Any] = {}
    for name, section in schema["properties"].items():
        for key in ("additionalProperties", "patternProperties"):
            entries = section.get(key)
            if key == "patternProperties" and entries:
                section[key] = {pattern: {"anyOf": [entry, changes]} for pattern, entry in entries.items()}
                alone[name] = {key: {pattern: {"anyOf": [entry, inherits]} for pattern, entry in entries.items()}}
            elif isinstance(entries, dict):
                section[key] = {"anyOf": [entries, changes]}
                alone[name] = {key: {"anyOf": [entries, inherits]}}
    tables = schema["$defs"]["Tables"]["properties"]
    alone["tables"] = {"properties": {name: {"anyOf": [*table["anyOf"], inherits]} for name, table in tables.items()}}
    for table in tables.values():
        table["anyOf"] = [*table["anyOf"], changes]
    schema |= {"if": {"not": {"required": [EXTENDS]}}, "then": {"properties": alone}}
    schema["properties"] = {EXTENDS: extends, **schema["properties"]}
    del schema["required"]
    return schema


def _message(items: list[Any], source: str) -> str:
    """One line: the source, as many of the errors as have room, and the number of the others."""
    line = f"{source}: "
    # A misspelt key is often the reason why another one is missing.
    items = sorted(items, key=lambda item: item["type"] not in ("extra_forbidden", "invalid_key"))
    mistakes = _by_value(items)
    for index, complaints in enumerate(mistakes):
        first, *others = (_sentence(item) for item in complaints)
        said = ", or ".join([first, *(sentence.rpartition("; ")[2] for sentence in others)])
        sentence = _clipped(" ".join(said.split()), _LONGEST_SENTENCE)
        if index and len(line) + len(sentence) > _LONGEST_MESSAGE - 20:
            return f"{line}; and {len(mistakes) - index} more."
        line += f"; {sentence}" if index else sentence
    return f"{line}."


def _by_value(items: list[Any]) -> list[list[Any]]:
    """The errors by the value that they are about: where it may have one of several types, each type complains.

    Those that are no section say nothing where the value is one.
    """
    values: dict[tuple[Any, ...], list[Any]] = {}
    for item in items:
        values.setdefault(tuple(_path(item["loc"])), []).append(item)
    within = {path[:length] for path in values for length in range(len(path))}
    return [
        complaints
        for path, complaints in values.items()
        if path not in within or any(item["type"] not in _NOT_A for item in complaints)
    ]


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _sentence(item: Any) -> str:
    value, kind, context = item["input"], item["type"], item.get("ctx", {})
    path = _path(item["loc"])
    is_key = kind == "invalid_key" or (kind == "string_type" and item["loc"][-1] == "[key]")
    where = ".".join(_clipped(str(part), 64) for part in (path[:-1] if is_key else path))
    if is_key:
        message = f"the key {shortened(value)} is not text; write it in quotes"
        return f"{where}: {message}" if where else message
    if kind == "value_error":
        message = str(context["error"])
        return f"{where}: {message}" if where else message
    if isinstance(value, str) and kind in ("float_type", "int_type") and _YAML_FLOAT_AS_TEXT.match(value):
        mantissa, exponent = re.split("[eE]", value)
        mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
        sign = exponent if exponent[0] in "+-" else f"+{exponent}"
        return f"{where}: {shortened(value)} is text to YAML, not a number: write {mantissa}e{sign}"
    if kind == "extra_forbidden":
        return f"{where}: unknown key (value {shortened(value)}); {_known_keys(item['loc'])}"
    if kind == "missing":
        return f"{where}: this key is missing; add it (config/schema.json describes it)"
    if kind == "string_pattern_mismatch":
        return f"{where}: {shortened(value)} is not allowed; {_explain_pattern(context['pattern'])}"
    if kind == "union_tag_invalid":
        choices = [choice.strip("' ") for choice in context["expected_tags"].split(",")]
        key = context["discriminator"].strip("'")
        return f"{where}.{key}: {shortened(context['tag'])} does not exist; {suggestion(context['tag'], choices)}"
    if kind == "union_tag_not_found":
        key = context["discriminator"].strip("'")
        return f"{where}.{key}: this key is missing; it says which of the forms in config/schema.json is meant"
    if kind == "literal_error":
        return f"{where}: {shortened(value)} is not allowed; choose {context['expected']}"
    if kind == "string_too_long":
        return f"{where}: {shortened(value)} has {len(value)} characters; write at most {context['max_length']}"
    if kind in _NOT_A:
        return f"{where}: {shortened(value)} is {_NOT_A[kind]}"
    return f"{where}: {item['msg']}, got {shortened(value)}; correct it"


_NO_MAPPING = "no mapping; write keys and values, as config/schema.json describes them"
_NO_INTEGER = "not read as a whole number; write one such as 8, without quotes or a decimal point"
_NOT_A = {
    "string_type": "not text; write text, in quotes if YAML would read it otherwise",
    "dict_type": _NO_MAPPING,
    "model_type": _NO_MAPPING,
    "model_attributes_type": _NO_MAPPING,
    "list_type": "no list; write one such as [a, b]",
    "int_type": _NO_INTEGER,
    "int_from_float": _NO_INTEGER,
    "float_type": "no number; write one such as 0.5, without quotes",
    "bool_type": "neither true nor false; write true or false",
}


def _path(loc: Iterable[Any]) -> list[Any]:
    """A location without the steps that pydantic adds for unions (the tag) and for keys."""
    return _walk(loc)[0]


def _known_keys(loc: tuple[Any, ...]) -> str:
    return suggestion(str(loc[-1]), {key for member in _walk(loc[:-1])[1] for key in member.get("properties", {})})


# What pydantic calls the members of a union that are no sections of the study.
_UNION_MEMBER = re.compile(r"(constrained-)?(str|int|float|bool)|.+\[.*\]")


def _walk(loc: Iterable[Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Follow a location of pydantic's through the study's schema: its keys without tags, and the schemas it ends at."""
    definitions = _schema()["$defs"]
    members = [_schema()]
    path = []
    for part in loc:
        mapping = members[0].get("discriminator", {}).get("mapping", {})
        if part in mapping:
            members = _members({"$ref": mapping[part]}, definitions)
            continue
        schema = next((member for member in members if _has_entry(member, part, len(members) > 1)), None)
        if part == "[key]" or schema is None:
            continue
        path.append(part)
        patterns: dict[str, Any] = schema.get("patternProperties", {})
        entries: Any = schema.get("additionalProperties") or next(iter(patterns.values()), {})
        is_list = schema.get("type") == "array"
        entry = schema.get("items") if is_list else schema.get("properties", {}).get(part, entries)
        members = _members(entry if isinstance(entry, dict) else {}, definitions)
    return path, members


def _has_entry(schema: dict[str, Any], part: Any, is_in_union: bool) -> bool:
    """Whether a step of a location leads into this schema; others name a member of a union, such as `bool`."""
    kind = schema.get("type")
    if kind is None:
        return True
    if not isinstance(part, str):
        # A place in a list, or a key that YAML reads as a number, a date or a truth value.
        return kind in ("array", "object")
    is_member = is_in_union and (part == schema.get("title") or _UNION_MEMBER.fullmatch(part))
    return kind == "object" and not is_member


@functools.cache
def _schema() -> dict[str, Any]:
    return Study.model_json_schema()


def _members(schema: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that a value may have here, null aside."""
    if "$ref" in schema:
        return _members(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        items = (item for item in schema["anyOf"] if item.get("type") != "null")
        return [member for item in items for member in _members(item, definitions)]
    return [schema]


def _explain_pattern(pattern: str) -> str:
    if "{40}" in pattern:
        return "a revision is a commit of the hub repository, 40 hexadecimal digits: copy it from the repository's page"
    if "{64}" in pattern:
        return "write the file's SHA-256, 64 hexadecimal digits in small letters"
    if "[0-9]x[1-9]" in pattern.replace("{0,4}", ""):
        return "write width x height without spaces, such as 1024x1024"
    if "https?" in pattern:
        return "write an address that begins with https://"
    if pattern.startswith("^[A-Za-z_]"):
        return "the name of a variable holds letters, digits and underscores, and starts with no digit"
    dot = ", dots" if "." in pattern else ""
    return f"an id holds letters, digits, dashes, underscores{dot} and no '/', and starts with a letter or digit"
