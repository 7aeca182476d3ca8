"""Read a study from YAML and say in one sentence what is wrong with it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from effllm.errors import UserError
from effllm.study.study import Study, suggestion

_YAML_FLOAT_AS_TEXT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_MOST_ERRORS = 8


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice in a mapping is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice: delete one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_study(path: str | Path) -> Study:
    """Read and check the study in `path`; `UserError` names the file, the key, the value and the remedy."""
    try:
        with open(path) as stream:
            raw = yaml.load(stream, Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name an existing study file.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    return parse_study(raw, source=str(path))


def parse_study(raw: Any, source: str) -> Study:
    """Check an already parsed study; `source` names it in errors."""
    if not isinstance(raw, dict):
        raise UserError(f"{source} holds no study: it must be a mapping with the keys of config/schema.json.")
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        sentences = [_sentence(item) for item in error.errors()]
        more = len(sentences) - _MOST_ERRORS
        listed = "; ".join(sentences[:_MOST_ERRORS]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"{source}: {listed}.") from None


def _sentence(item: Any) -> str:
    where = ".".join(str(part) for part in _path(item["loc"]))
    value, kind, context = item["input"], item["type"], item.get("ctx", {})
    if kind == "value_error":
        message = str(context["error"])
        return f"{where}: {message}" if where else message
    if isinstance(value, str) and kind in ("float_type", "int_type") and _YAML_FLOAT_AS_TEXT.match(value):
        mantissa, exponent = re.split("[eE]", value)
        mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
        sign = exponent if exponent[0] in "+-" else f"+{exponent}"
        return f"{where}: {value!r} is text to YAML, not a number: write {mantissa}e{sign}"
    if kind == "extra_forbidden":
        return f"{where}: unknown key (value {value!r}); {_known_keys(item['loc'])}"
    if kind == "missing":
        return f"{where}: this key is missing; add it (config/schema.json describes it)"
    if kind == "string_pattern_mismatch":
        return f"{where}: {value!r} is not allowed; {_explain_pattern(context['pattern'])}"
    if kind == "union_tag_invalid":
        choices = [choice.strip("' ") for choice in context["expected_tags"].split(",")]
        key = context["discriminator"].strip("'")
        return f"{where}.{key}: {context['tag']!r} does not exist; {suggestion(context['tag'], choices)}"
    if kind == "union_tag_not_found":
        key = context["discriminator"].strip("'")
        return f"{where}.{key}: this key is missing; it says which of the forms in config/schema.json is meant"
    if kind == "literal_error":
        return f"{where}: {value!r} is not allowed; choose {context['expected']}"
    return f"{where}: {item['msg']}, got {value!r}; correct it"


def _path(loc: Iterable[Any]) -> list[Any]:
    """A location without the steps that pydantic adds for unions (the tag) and for keys."""
    return _walk(loc)[0]


def _known_keys(loc: tuple[Any, ...]) -> str:
    return suggestion(str(loc[-1]), set(_walk(loc[:-1])[1].get("properties", {})))


def _walk(loc: Iterable[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Follow a location of pydantic's through the study's schema: its keys without tags, and the schema it ends at."""
    schema: Any = Study.model_json_schema()
    definitions = schema["$defs"]
    path = []
    for part in loc:
        schema = _resolve(schema, definitions)
        if "oneOf" in schema and part in schema.get("discriminator", {}).get("mapping", {}):
            schema = definitions[schema["discriminator"]["mapping"][part].rsplit("/", 1)[1]]
            continue
        if part == "[key]":
            continue
        path.append(part)
        if isinstance(part, int):
            schema = schema.get("items", {})
        elif part in schema.get("properties", {}):
            schema = schema["properties"][part]
        else:
            entries = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), {})
            schema = entries if isinstance(entries, dict) else {}
    return path, _resolve(schema, definitions)


def _resolve(schema: Any, definitions: dict[str, Any]) -> Any:
    while True:
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in schema:
            schema = next(item for item in schema["anyOf"] if item.get("type") != "null")
        else:
            return schema


def _explain_pattern(pattern: str) -> str:
    if "40" in pattern:
        return "a revision is a commit of the hub repository, 40 hexadecimal digits: copy it from the repository's page"
    dot = ", dots" if "." in pattern else ""
    return f"an id holds letters, digits, dashes, underscores{dot} and no '/', and starts with a letter or digit"
