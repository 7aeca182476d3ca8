"""Pieces of YAML as a person writes them: short mappings in braces, one entry a line."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

WIDTH = 120


def flow(value: Any) -> str:
    """A value in braces or brackets, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def entry(key: str, value: Mapping[str, Any], indent: int = 2) -> list[str]:
    """An entry of a section: on one line where it fits, else with a line for each of its own keys."""
    margin = " " * indent
    line = f"{margin}{flow(key)}: {flow(dict(value))}"
    if len(line) <= WIDTH:
        return [line]
    lines = [f"{margin}{flow(key)}:"]
    for own, content in value.items():
        line = f"{margin}  {flow(own)}: {flow(content)}"
        if len(line) <= WIDTH or not isinstance(content, Mapping):
            lines.append(line)
        else:
            lines += [f"{margin}  {flow(own)}:", *flow_lines(content, indent + 4)]
    return lines


def comment(text: str, indent: int = 0) -> list[str]:
    """A comment, broken between words where it is longer than a line."""
    margin = " " * indent + "#"
    lines, line = [], margin
    for word in text.split():
        if len(line) + 1 + len(word) > WIDTH and line != margin:
            lines.append(line)
            line = margin
        line += f" {word}"
    return [*lines, line]


def flow_lines(value: Mapping[str, Any], indent: int) -> list[str]:
    """A mapping in braces, broken between its keys where it is longer than a line."""
    margin = " " * indent
    lines, line = [], margin + "{"
    for number, key in enumerate(value):
        word = f"{flow(key)}: {flow(value[key])}" + ("}" if number == len(value) - 1 else ",")
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line.rstrip())
            line = margin + " "
        line += word + " "
    return [*lines, line.rstrip()]
