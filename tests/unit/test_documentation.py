"""The documents: every page is in the menu, links lead somewhere, YAML is a study's, commands can be called."""

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml

from effllm.cli import main
from effllm.command_line import Parser
from effllm.study import Study
from effllm.study.inheritance import read_study, written_out
from tests.conftest import REPOSITORY

DOCUMENTS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCUMENTS.rglob("*.md"))]
_YAML = re.compile(r"(#.*\n)*[A-Za-z][\w.-]*:(\s|$)")
# What stands for something else, and so makes an example visibly incomplete.
_ELLIPSIS = re.compile(r"\.\.\.[\]}]")


class Block(NamedTuple):
    """An example in a document: where it begins, what its fence says, its text."""

    place: str
    language: str
    text: str


def _blocks(path: Path) -> Iterator[Block]:
    lines = path.read_text().splitlines()
    number = 0
    while number < len(lines):
        begin, fence = number, re.fullmatch(r"```(\w*)", lines[number])
        if fence:
            number = lines.index("```", begin + 1)
            text = "\n".join(lines[begin + 1 : number])
            yield Block(f"{path.relative_to(REPOSITORY)}:{begin + 1}", fence[1], text)
        elif lines[number].startswith("    ") and not lines[number - 1]:
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number]):
                number += 1
            text = "\n".join(line[4:] for line in lines[begin:number]).rstrip()
            yield Block(
                f"{path.relative_to(REPOSITORY)}:{begin + 1}", "yaml" if _YAML.match(text) else "commands", text
            )
        number += 1


BLOCKS = [block for path in PAGES for block in _blocks(path)]


@cache
def _schema() -> dict[str, Any]:
    schema = Study.model_json_schema()
    # An example has some of a study's sections.
    return {**schema, "required": []}


@cache
def _tiny() -> Any:
    return read_study(REPOSITORY / "config" / "tiny.yaml")


def _accepts(schema: dict[str, Any], value: Any) -> bool:
    return jsonschema.Draft202012Validator({**schema, "$defs": _schema()["$defs"]}).is_valid(value)


def _faults(example: dict[str, Any], place: str) -> list[str]:
    """What a study with these sections is refused for; entries that are like others find them in the embedded study."""
    if "like" in str(example):
        example = {name: {**_tiny().get(name, {}), **section} for name, section in example.items()}
    study = written_out(example, place, REPOSITORY / "config")
    errors = jsonschema.Draft202012Validator(_schema()).iter_errors(study)
    return [f"{place} {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: block.place
)
def test_yaml_is_that_of_a_study_or_of_a_part_of_one(block: Block) -> None:
    example = yaml.safe_load(block.text.replace("COMMIT", "a" * 40))
    assert isinstance(example, dict)
    if _ELLIPSIS.search(block.text) or "set-resources" in example:
        return
    sections = _schema()["properties"]
    if example.keys() <= {*sections, "extends"}:
        assert not _faults(example, block.place)
        return
    # Entries of one section, or keys of one type.
    holders = [*sections.values(), *_schema()["$defs"].values()]
    for key, value in example.items():
        entries = [holder.get("additionalProperties") for holder in holders]
        entries += [entry for holder in holders for entry in holder.get("patternProperties", {}).values()]
        keys = [holder.get("properties", {}).get(key) for holder in holders]
        known = [schema for schema in (*entries, *keys) if isinstance(schema, dict)]
        assert any(_accepts(schema, value) for schema in known), f"{block.place}: {key}"


def test_every_page_is_in_the_menu_and_every_entry_is_a_page() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text()
    menu = sorted(re.findall(r"^ +- ([\w/.-]+\.md)$", text, re.MULTILINE))
    assert menu == sorted(str(path.relative_to(DOCUMENTS)) for path in DOCUMENTS.rglob("*.md"))


def _anchors(path: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        # The site holds docs/ alone.
        assert not path.is_relative_to(DOCUMENTS) or page.resolve().is_relative_to(DOCUMENTS), target
        assert not anchor or anchor in _anchors(page), target


def _commands() -> Iterator[tuple[str, str]]:
    for block in BLOCKS:
        if block.language == "commands":
            for line in block.text.replace("\\\n", " ").splitlines():
                yield block.place, re.sub(r"^\$ |^[A-Z_]+=\S+ ", "", line)


@pytest.mark.parametrize(
    ("place", "command"), [pair for pair in _commands() if pair[1].startswith("effllm ")], ids=lambda value: value[:60]
)
def test_commands_can_be_called(place: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = Parser.parse_args

    def parsed(self: argparse.ArgumentParser, arguments: Any) -> argparse.Namespace:
        done: argparse.Namespace = parse(self, arguments)
        done.run = lambda _: 0
        return done

    monkeypatch.setattr(Parser, "parse_args", parsed)
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command, comments=True)[1:])
    assert ended.value.code == 0, place


@pytest.mark.parametrize(
    ("place", "command"),
    [pair for pair in _commands() if re.match(r"python (-m effllm|benchmarks/)", pair[1])],
    ids=lambda value: value[:60],
)
def test_programs_exist(place: str, command: str) -> None:
    _, *words = command.split()
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), place
    else:
        assert (REPOSITORY / words[0]).is_file(), place
