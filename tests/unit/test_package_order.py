"""Packages import only packages below them, in functions too, and no two files import each other.

Left out are imports that never run in an import: those for types, and those of a program where it is run as one.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.conftest import REPOSITORY

# From the ground up. A package may import those before it.
ORDER = [
    "errors",
    "fields",
    "command_line",
    "intervals",
    "scaling",
    "results",
    "runtime",
    "telemetry",
    "hub",
    "models",
    "diffusion",
    "data",
    "quantization",
    "serving",
    "tables",
    "decision",
    "training",
    "fidelity",
    "study",
    "profiling",
    "evaluation",
    "stages",
    "cluster",
    "assembly",
    "planning",
    "init",
    "report",
    "cli",
]


def _name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


FILES = {_name(str(path.relative_to(REPOSITORY))): path for path in (REPOSITORY / "effllm").rglob("*.py")}


def _imported(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and {"TYPE_CHECKING", "__name__"} & {
            name.id for name in ast.walk(child.test) if isinstance(name, ast.Name)
        }:
            continue
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names)
        if isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{name.name}" for name in child.names)
        yield from _imported(child)


def _imports() -> dict[str, set[str]]:
    """The files of the package that each file imports."""
    found = {name: _imported(ast.parse(path.read_text())) for name, path in FILES.items()}
    # `from module import name` names a module, or something in one.
    return {
        name: {file if file in FILES else file.rpartition(".")[0] for file in files if file.startswith("effllm.")}
        for name, files in found.items()
    }


def test_packages_import_only_packages_below_them() -> None:
    assert {name.split(".")[1] for name in FILES if name != "effllm"} == set(ORDER)
    place = {"effllm": -1} | {f"effllm.{package}": number for number, package in enumerate(ORDER)}
    upward = [
        f"{name} imports {other}"
        for name, others in _imports().items()
        for other in others
        if place[".".join(other.split(".")[:2])] > place[".".join(name.split(".")[:2])]
    ]
    assert upward == []


def test_no_files_import_each_other() -> None:
    try:
        TopologicalSorter(_imports()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
